//! The command line: what was typed becomes what is done, and how it ends becomes an exit code.

mod pki;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    app::App,
    config::{self, AdminAddress, Config, Diagnostics},
    demo,
    firewall::export,
    observe,
};

/// A clean end.
const DONE: u8 = 0;
/// A failure to start.
const FAILED: u8 = 1;
/// A configuration that can't be used.
const BAD_CONFIG: u8 = 2;

/// A load balancer that terminates TLS, keeps unwanted traffic out and tells Prometheus everything.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Read a configuration, tell everything that is wrong with it, and print what would be served.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take every warning for an error.
        #[arg(long)]
        strict: bool,
    },
    /// Run everything embedded: a throw-away certificate and three small backends in the process.
    Demo {
        /// Where HTTPS is served.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
        https: SocketAddr,
        /// Where metrics and status are served.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
        admin: SocketAddr,
    },
    /// Rules for the hosts' own firewalls.
    Firewall {
        #[command(subcommand)]
        command: FirewallCommand,
    },
    /// A private CA, so that the way to the web servers is encrypted and both ends know each other.
    Pki(pki::Pki),
    /// Ask a running instance whether it lives; for container health checks.
    Healthcheck {
        /// Its admin address, or unix:PATH.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
        admin: AdminAddress,
    },
}

#[derive(Debug, Subcommand)]
enum FirewallCommand {
    /// Print an nftables ruleset for one host of the set-up; load it there with `nft -f`.
    Export(Export),
}

#[derive(Debug, Args)]
struct Export {
    /// The configuration file of the balancer.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which host: the balancer, a web server behind it, or a database behind those.
    #[arg(long)]
    role: Role,
    /// Network that may use ssh; may be given several times. Left out: nobody.
    #[arg(long, value_name = "NETWORK", value_parser = config::network_of)]
    ssh_from: Vec<IpNet>,
    /// Network that may read metrics, where the admin address is not the loopback (role lb).
    #[arg(long, value_name = "NETWORK", value_parser = config::network_of)]
    metrics_from: Vec<IpNet>,
    /// Address that the balancer connects from; may be given several times (role web).
    #[arg(long, value_name = "ADDRESS", value_parser = config::network_of)]
    balancer: Vec<IpNet>,
    /// Address of a web server. Left out: the backends of the configuration (role db).
    #[arg(long, value_name = "ADDRESS", value_parser = config::network_of)]
    web: Vec<IpNet>,
    /// Port of the database (role db).
    #[arg(long, value_name = "PORT", default_value_t = 3306)]
    db_port: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Lb,
    Web,
    Db,
}

/// Runs the program with the process' arguments.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ExitCode::from(match arguments.command {
        Command::Run { config } => run(&config),
        Command::Check { config, strict } => check(&config, strict),
        Command::Demo { https, admin } => demonstrate(https, admin),
        Command::Firewall { command: FirewallCommand::Export(asked) } => export(&asked),
        Command::Pki(asked) => match pki::run(&asked) {
            Ok(text) => {
                say(&text);
                DONE
            }
            Err(error) => fail(&error.to_string()),
        },
        Command::Healthcheck { admin } => healthcheck(&admin),
    })
}

fn run(path: &Path) -> u8 {
    match load(path, false) {
        Ok((config, _)) => serve(config, || {}),
        Err(code) => code,
    }
}

fn check(path: &Path, strict: bool) -> u8 {
    match load(path, strict) {
        Ok((config, warnings)) => {
            let end =
                if warnings.is_empty() { "the configuration is good" } else { "usable, see the warnings" };
            say(&format!("{}\n{}: {end}\n", config.summary(), path.display()));
            DONE
        }
        Err(code) => code,
    }
}

fn export(asked: &Export) -> u8 {
    let config = match load(&asked.config, false) {
        Ok((config, _)) => config,
        Err(code) => return code,
    };
    let role = match asked.role {
        Role::Lb => export::Role::Balancer,
        Role::Web => export::Role::Web,
        Role::Db => export::Role::Database,
    };
    let sites = export::Sites {
        ssh_from: asked.ssh_from.clone(),
        metrics_from: asked.metrics_from.clone(),
        balancers: asked.balancer.clone(),
        web: asked.web.clone(),
        database_port: asked.db_port,
    };
    match export::ruleset(&config, role, &sites) {
        Ok(rules) => {
            say(&rules);
            DONE
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn demonstrate(https: SocketAddr, admin: SocketAddr) -> u8 {
    match demo::prepare(https, admin) {
        Ok(demo) => {
            let code = serve(demo.config, || say(&demo.guide));
            drop(demo.stage);
            code
        }
        Err(error) => fail(&format!("the demo can't be set up: {error}")),
    }
}

/// Reads a configuration and prints what is wrong with it.
fn load(path: &Path, strict: bool) -> Result<(Config, Diagnostics), u8> {
    let loaded = config::load(path);
    let loaded =
        if strict { loaded.and_then(|(config, warnings)| Ok((config, warnings.strict()?))) } else { loaded };
    match loaded {
        Ok((config, warnings)) => {
            complain(&warnings);
            Ok((config, warnings))
        }
        Err(problems) => {
            complain(&problems);
            Err(BAD_CONFIG)
        }
    }
}

fn serve(config: Config, ready: impl FnOnce()) -> u8 {
    if let Err(error) = observe::start_program_log(&config.log) {
        return fail(&error.to_string());
    }
    let served = App::new(config).and_then(|app| {
        ready();
        app.run()
    });
    observe::flush_program_log();
    served.map_or_else(|error| fail(&error.to_string()), |()| DONE)
}

/// How long an instance that lives may take to say so.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends the one request that a container's health check needs, without a client in the image.
fn healthcheck(admin: &AdminAddress) -> u8 {
    let answer = match admin {
        AdminAddress::Tcp(address) => TcpStream::connect_timeout(address, PATIENCE).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            ask_health(stream)
        }),
        AdminAddress::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            ask_health(stream)
        }),
    };
    match answer {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => DONE,
        Ok(_) => fail(&format!("{admin} answers, but not with 200")),
        Err(error) => fail(&format!("no answer from {admin}: {error}")),
    }
}

fn ask_health(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}

fn complain(diagnostics: &Diagnostics) {
    if !diagnostics.is_empty() {
        // WHY: a standard error that is gone leaves nobody to tell.
        let _ = write!(io::stderr(), "{diagnostics}");
    }
}

fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn fail(problem: &str) -> u8 {
    let _ = writeln!(io::stderr(), "portcullis: {problem}");
    FAILED
}
