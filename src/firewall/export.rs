//! The hosts of the set-up, guarded by nftables: rules for the balancer, the web servers and the
//! databases behind them, from the configuration that is served.
//!
//! Each ruleset is a table of its own that replaces itself when it is loaded again and leaves every
//! other table alone. Only what comes in is filtered; connections that a host opens, and their
//! answers, pass.

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::config::{AdminAddress, Config};

/// Which host the rules are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The edge: the listeners' ports from everywhere.
    Balancer,
    /// A web server: the backends' ports, from the balancers only.
    Web,
    /// A database: its port, from the web servers only.
    Database,
}

/// What the configuration does not tell.
#[derive(Debug, Clone, Default)]
pub struct Sites {
    /// From where ssh is let in; nobody where empty.
    pub ssh_from: Vec<IpNet>,
    /// From where the admin address of the balancer is let in, if it is not the loopback.
    pub metrics_from: Vec<IpNet>,
    /// The addresses that the balancers connect from.
    pub balancers: Vec<IpNet>,
    /// The web servers; empty means the addresses of all backends.
    pub web: Vec<IpNet>,
    pub database_port: u16,
}

/// What is missing to write the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportError {
    NoBalancers,
    /// The backends that are host names, whose addresses nobody knows here.
    NamedBackends(Vec<String>),
}

/// The ruleset of a host, as `nft -f` reads it.
///
/// # Errors
/// What has to be given beside the configuration.
pub fn ruleset(config: &Config, role: Role, sites: &Sites) -> Result<String, ExportError> {
    let mut rules = Rules::default();
    match role {
        Role::Balancer => balancer(config, sites, &mut rules),
        Role::Web => web(config, sites, &mut rules)?,
        Role::Database => database(config, sites, &mut rules)?,
    }
    if sites.ssh_from.is_empty() {
        rules.comment("ssh: nobody (--ssh-from names networks)");
    } else {
        rules.from("ssh", &sites.ssh_from, "tcp dport 22");
    }
    Ok(rules.table(role))
}

fn balancer(config: &Config, sites: &Sites, rules: &mut Rules) {
    for listener in config.listeners.iter().filter(|listener| !listener.address.ip().is_loopback()) {
        rules.comment(&format!("listener {}", listener.name));
        rules.line(&format!(
            "{}tcp dport {} accept",
            towards(listener.address.ip()),
            listener.address.port()
        ));
    }
    if let Some(AdminAddress::Tcp(admin)) = config.admin.as_ref().map(|admin| &admin.address)
        && !admin.ip().is_loopback()
    {
        let port = admin.port();
        if sites.metrics_from.is_empty() {
            rules.comment(&format!("metrics on port {port}: nobody (--metrics-from names networks)"));
        } else {
            rules.from("metrics", &sites.metrics_from, &format!("tcp dport {port}"));
        }
    }
}

fn web(config: &Config, sites: &Sites, rules: &mut Rules) -> Result<(), ExportError> {
    if sites.balancers.is_empty() {
        return Err(ExportError::NoBalancers);
    }
    let mut ports = BTreeSet::new();
    for cluster in &config.clusters {
        ports.extend(cluster.backends.iter().map(|backend| backend.port));
        ports.extend(cluster.health.iter().filter_map(|health| health.port));
    }
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    rules.from("the balancers", &sites.balancers, &format!("tcp dport {{ {} }}", ports.join(", ")));
    Ok(())
}

fn database(config: &Config, sites: &Sites, rules: &mut Rules) -> Result<(), ExportError> {
    let web = if sites.web.is_empty() { backend_addresses(config)? } else { sites.web.clone() };
    rules.from("the web servers", &web, &format!("tcp dport {}", sites.database_port));
    Ok(())
}

fn backend_addresses(config: &Config) -> Result<Vec<IpNet>, ExportError> {
    let backends = || config.clusters.iter().flat_map(|cluster| &cluster.backends);
    let address = |host: &str| host.parse::<IpAddr>().ok();
    let named: BTreeSet<&str> =
        backends().map(|backend| backend.host.as_str()).filter(|host| address(host).is_none()).collect();
    if !named.is_empty() {
        return Err(ExportError::NamedBackends(named.into_iter().map(str::to_owned).collect()));
    }
    let addresses: BTreeSet<IpNet> =
        backends().filter_map(|backend| address(&backend.host)).map(IpNet::from).collect();
    Ok(addresses.into_iter().collect())
}

/// Matches the address of a host if it is a certain one.
fn towards(address: IpAddr) -> String {
    match address {
        _ if address.is_unspecified() && address.is_ipv4() => "meta nfproto ipv4 ".to_owned(),
        _ if address.is_unspecified() => String::new(),
        IpAddr::V4(address) => format!("ip daddr {address} "),
        IpAddr::V6(address) => format!("ip6 daddr {address} "),
    }
}

/// Lines of the chain for what comes in.
#[derive(Default)]
struct Rules(String);

impl Rules {
    fn line(&mut self, text: &str) {
        // WHY: writing to a string can't fail.
        let _ = writeln!(self.0, "        {text}");
    }

    fn comment(&mut self, text: &str) {
        // A name of a listener can't end the comment: it has visible characters only.
        self.line(&format!("# {text}"));
    }

    fn from(&mut self, who: &str, networks: &[IpNet], matches: &str) {
        self.comment(who);
        for (family, networks) in by_family(networks) {
            self.line(&format!("{family} saddr {{ {networks} }} {matches} accept"));
        }
    }

    fn table(self, role: Role) -> String {
        let role = match role {
            Role::Balancer => "lb",
            Role::Web => "web",
            Role::Database => "db",
        };
        format!(
            "#!/usr/sbin/nft -f
# Made by `portcullis firewall export --role {role}`. Loading it again replaces it.
table inet portcullis_{role}
delete table inet portcullis_{role}
table inet portcullis_{role} {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iif \"lo\" accept
        # Neighbours, routers, groups and leases of IPv6, path MTU and errors, and a little ping.
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, nd-router-solicit }} accept
        icmpv6 type {{ mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }} accept
        ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
        icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
        icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept
        icmp type echo-request limit rate 10/second accept
        icmpv6 type echo-request limit rate 10/second accept
{}    }}
}}
",
            self.0
        )
    }
}

/// The networks of each family that has any, without those that lie in another one.
fn by_family(networks: &[IpNet]) -> Vec<(&'static str, String)> {
    let networks = IpNet::aggregate(&networks.to_vec());
    let family = |wanted: bool| {
        networks
            .iter()
            .filter(|network| network.addr().is_ipv4() == wanted)
            .map(shown)
            .collect::<Vec<_>>()
            .join(", ")
    };
    [("ip", family(true)), ("ip6", family(false))].into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

/// One address without its prefix.
fn shown(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExportError::NoBalancers => f.write_str(
                "which addresses do the balancers connect from? Name them with --balancer ADDRESS, each once",
            ),
            ExportError::NamedBackends(names) => write!(
                f,
                "backends are named by host ({}), and rules need addresses: name the web servers with --web ADDRESS",
                names.join(", ")
            ),
        }
    }
}

impl std::error::Error for ExportError {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn config(extra: &str) -> Config {
        let text = format!(
            "{extra}\n[[listeners]]\naddress = \"0.0.0.0:80\"\n[[listeners]]\naddress = \"[2001:db8::1]:443\"\n\
             [[listeners]]\naddress = \"127.0.0.1:8080\"\n[[routes]]\ncluster = \"web\"\n\
             [clusters.web]\nbackends = [\"10.0.0.12:8080\", \"10.0.0.11:8080\", \"[fd00::1]:8081\"]\nhealth.port = 9000\n"
        );
        config::parse("test", &text, Path::new("")).unwrap_or_else(|problems| panic!("{problems}")).0
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| config::network_of(text).unwrap()).collect()
    }

    fn accepts(rules: &str) -> Vec<&str> {
        rules.lines().map(str::trim).filter(|line| line.contains("tcp dport")).collect()
    }

    #[test]
    fn the_balancer_takes_its_listeners_from_everywhere_and_ssh_from_some() {
        let config = config("admin = { address = \"10.0.0.1:9090\", unprotected = true }");
        let sites = Sites { ssh_from: nets(&["10.9.0.0/16", "10.9.1.0/24", "fd00::/8"]), ..Sites::default() };
        let rules = ruleset(&config, Role::Balancer, &sites).unwrap();
        let expected = [
            "meta nfproto ipv4 tcp dport 80 accept",
            "ip6 daddr 2001:db8::1 tcp dport 443 accept",
            "ip saddr { 10.9.0.0/16 } tcp dport 22 accept",
            "ip6 saddr { fd00::/8 } tcp dport 22 accept",
        ];
        assert_eq!(accepts(&rules), expected);
        assert!(rules.contains("# metrics on port 9090: nobody"), "{rules}");
    }

    #[test]
    fn web_servers_take_balancers_only_and_databases_web_servers_only() {
        let config = config("");
        assert_eq!(ruleset(&config, Role::Web, &Sites::default()), Err(ExportError::NoBalancers));
        let sites =
            Sites { balancers: nets(&["10.0.0.1", "10.0.0.2"]), database_port: 3306, ..Sites::default() };
        let web = ruleset(&config, Role::Web, &sites).unwrap();
        assert_eq!(accepts(&web), ["ip saddr { 10.0.0.1, 10.0.0.2 } tcp dport { 8080, 8081, 9000 } accept"]);
        let database = ruleset(&config, Role::Database, &sites).unwrap();
        let expected = [
            "ip saddr { 10.0.0.11, 10.0.0.12 } tcp dport 3306 accept",
            "ip6 saddr { fd00::1 } tcp dport 3306 accept",
        ];
        assert_eq!(accepts(&database), expected);
    }
}
