//! `portcullis pki`: the private CA from the command line.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use nix::unistd::Group;

use crate::{
    config::date_text,
    pki::{Authority, Init, Issued, PkiError, Record, State, SubjectName, Subtree},
};

/// Where a CA is looked for; beside the configuration of the systemd unit.
const DIRECTORY: &str = "/etc/portcullis/pki";

#[derive(Debug, Args)]
pub(super) struct Pki {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Make the CA, once. Its key stays with this command: a running balancer does not need it.
    Init {
        #[command(flatten)]
        place: Place,
        /// Domain or network that the CA may certify, with all that is in it; may be given several
        /// times. Left out: internal, localhost and the private networks.
        #[arg(long, value_name = "DOMAIN|NETWORK")]
        permit: Vec<String>,
        /// Group that the balancer runs as; it may read the key in balancer/, and no other.
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
    },
    /// Make a certificate for each web server, ready to be copied there.
    Issue {
        #[command(flatten)]
        place: Place,
        /// How long they are good for.
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=825))]
        days: u16,
        /// One web server: its names and addresses, with commas between them.
        #[arg(required = true, value_name = "NAME[,NAME...]")]
        names: Vec<String>,
    },
    /// Replace certificates in the last third of their time by new ones, for a timer.
    Renew {
        #[command(flatten)]
        place: Place,
        /// Replace all of them, however long they are good for.
        #[arg(long)]
        all: bool,
    },
    /// List what was issued, with the day it ends.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Have the certificates of a web server trusted no more, by running balancers too.
    Revoke {
        #[command(flatten)]
        place: Place,
        /// The first name of its certificate.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// The folder of the CA.
    #[arg(long, value_name = "FOLDER", default_value = DIRECTORY)]
    directory: PathBuf,
}

/// Does what is asked for; returns what to say.
pub(super) fn run(asked: &Pki) -> Result<String, PkiError> {
    let now = SystemTime::now();
    match &asked.command {
        PkiCommand::Init { place, permit, group } => init(&place.directory, permit, group.as_deref(), now),
        PkiCommand::Issue { place, days, names } => issue(&place.directory, *days, names, now),
        PkiCommand::Renew { place, all } => renew(&place.directory, *all, now),
        PkiCommand::List { place } => list(&place.directory, now),
        PkiCommand::Revoke { place, names } => revoke(&place.directory, names, now),
    }
}

fn init(folder: &Path, permit: &[String], group: Option<&str>, now: SystemTime) -> Result<String, PkiError> {
    let permit = permit.iter().map(|text| Subtree::parse(text)).collect::<Result<_, _>>()?;
    let group = group.map(|name| group_id(name).ok_or_else(|| PkiError::UnknownGroup(name.to_owned())));
    Authority::init(folder, &Init { permit, group: group.transpose()? }, now)?;
    let authority = Authority::open(folder)?;
    let permitted: Vec<String> = authority.permitted().iter().map(ToString::to_string).collect();
    let shown = folder.display();
    Ok(format!(
        "made a private CA in {shown}, good until {}; it may certify {}\n\
         \n\
         {shown}/ca.key signs everything: keep it secret, and a copy of it safe.\n\
         In the cluster of the balancer's configuration:\n\
         \x20 tls = {{ ca = \"internal\", certificate = \"internal\" }}\n\
         Next, a certificate for each web server:\n\
         \x20 portcullis pki issue --directory {shown} web1.internal,10.0.0.11\n",
        date_text(authority.not_after()),
        permitted.join(", "),
    ))
}

fn group_id(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

fn issue(folder: &Path, days: u16, asked: &[String], now: SystemTime) -> Result<String, PkiError> {
    let parse = |each: &String| each.split(',').map(SubjectName::parse).collect::<Result<Vec<_>, _>>();
    let asked: Vec<Vec<SubjectName>> = asked.iter().map(parse).collect::<Result<_, _>>()?;
    let authority = Authority::open(folder)?;
    let lifetime = Duration::from_hours(24 * u64::from(days));
    // All or nothing: a name that is refused must not leave half of the servers done.
    asked.iter().try_for_each(|names| authority.check(names))?;
    let mut text = String::new();
    for names in asked {
        text.push_str(&issued_text(&authority.issue(&names, lifetime, now)?));
    }
    Ok(text + SNIPPETS)
}

fn issued_text(issued: &Issued) -> String {
    let names: Vec<String> = issued.record.names.iter().map(ToString::to_string).collect();
    format!(
        "{}, good until {}\n  scp {}/* root@{}:/etc/portcullis-backend/\n",
        names.join(", "),
        date_text(issued.record.not_after),
        issued.folder.display(),
        names[0],
    )
}

const SNIPPETS: &str = "
On each web server: make the folder (mkdir -m 0700 /etc/portcullis-backend), copy the files there, and serve with them.
ca.crt is who may connect: only balancers with a certificate of this CA.

nginx, in server { }:
  listen 8443 ssl;
  ssl_certificate         /etc/portcullis-backend/backend.crt;
  ssl_certificate_key     /etc/portcullis-backend/backend.key;
  ssl_client_certificate  /etc/portcullis-backend/ca.crt;
  ssl_verify_client       on;
  ssl_verify_depth        2;

Apache, in <VirtualHost *:8443>:
  SSLEngine on
  SSLCertificateFile      /etc/portcullis-backend/backend.crt
  SSLCertificateKeyFile   /etc/portcullis-backend/backend.key
  SSLCACertificateFile    /etc/portcullis-backend/ca.crt
  SSLVerifyClient require
  SSLVerifyDepth 2
";

fn renew(folder: &Path, all: bool, now: SystemTime) -> Result<String, PkiError> {
    let renewed = Authority::open(folder)?.renew(all, now)?;
    if renewed.is_empty() {
        return Ok("nothing is to be renewed\n".to_owned());
    }
    let text: String = renewed.iter().map(issued_text).collect();
    Ok(text + "copy them and have the web servers read them (nginx -s reload, apachectl graceful)\n")
}

fn list(folder: &Path, now: SystemTime) -> Result<String, PkiError> {
    let authority = Authority::open(folder)?;
    let permitted: Vec<String> = authority.permitted().iter().map(ToString::to_string).collect();
    let mut text = format!(
        "the CA is good until {} and may certify {}\n",
        date_text(authority.not_after()),
        permitted.join(", ")
    );
    for (record, state) in authority.list(now)? {
        text.push_str(&record_line(&record, state));
    }
    Ok(text)
}

fn record_line(record: &Record, state: State) -> String {
    let names: Vec<String> = record.names.iter().map(ToString::to_string).collect();
    let (until, serial) = (date_text(record.not_after), record.serial_text());
    format!("{:<40} {:<14} until {until}  {serial}\n", names.join(","), state.text())
}

fn revoke(folder: &Path, names: &[String], now: SystemTime) -> Result<String, PkiError> {
    let mut authority = Authority::open(folder)?;
    let mut lines = Vec::new();
    for name in names {
        let revoked = authority.revoke(name, now)?;
        if revoked.is_empty() {
            lines.push(format!("{name}: nothing that is still good"));
        }
        lines.extend(revoked.iter().map(|record| format!("{name}: revoked {}", record.serial_text())));
    }
    let list = folder.join("balancer/ca.crl");
    Ok(format!(
        "{}\nbalancers that read {} turn it away within seconds; copy the file to those on other machines\n",
        lines.join("\n"),
        list.display()
    ))
}
