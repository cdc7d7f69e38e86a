//! What the documentation lists, held against what there is.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use portcullis::{
    error::{Blame, Reason},
    observe::{CertificateExpiry, Metrics, Protocol, TlsFile},
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The rows of all tables whose first cell is code, without the backquotes of that cell.
fn rows(text: &str) -> Vec<Vec<String>> {
    let row = |line: &str| {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
        let mut cells = cells.map(str::trim);
        let first = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        Some(std::iter::once(first).chain(cells).map(str::to_owned).collect())
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn reasons_are_those_of_the_code_in_its_order() {
    let listed: Vec<Vec<String>> =
        rows(&read("docs/reasons.md")).into_iter().map(|row| row[..3].to_vec()).collect();
    let known: Vec<Vec<String>> = Reason::ALL
        .iter()
        .map(|reason| {
            let fault = match reason.blame() {
                Blame::Client => "client",
                Blame::Upstream => "backend",
                Blame::Portcullis => "Portcullis",
                Blame::Nobody => "nobody",
            };
            vec![reason.code().to_owned(), reason.status().to_string(), fault.to_owned()]
        })
        .collect();
    assert_eq!(listed, known);
}

/// Every metric that a scrape can show, with the names of its labels.
fn scraped() -> BTreeMap<String, String> {
    let text = busy().scrape();
    let mut metrics = BTreeMap::new();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            ["{", " ", "_count{"].iter().any(|next| rest.starts_with(next))
        };
        let sample = text.lines().find(is_sample).unwrap();
        let labels = sample.split_once('{').map_or("", |(_, rest)| rest);
        let names: Vec<&str> =
            labels.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name).collect();
        metrics.insert(name.to_owned(), names.join(", "));
    }
    metrics
}

/// Metrics in which everything has happened once.
fn busy() -> std::sync::Arc<Metrics> {
    let metrics = Metrics::new(1);
    let shard = metrics.shard(0);
    let took = Duration::from_millis(1);
    let listener = shard.listener("https");
    listener.handshake("ok", took);
    shard.route("https", "/").request(Protocol::H2, 200, took);
    shard.cluster("web").retry();
    shard.cluster("web").set_exposed(false, false);
    let backend = shard.backend("web", "10.0.0.11:8080");
    backend.request_started();
    backend.connection_opened(took);
    backend.request_finished(Some(200), Some(took));
    backend.set_up(true);
    backend.set_weight(1);
    backend.probe("ok", took);
    metrics.acme_order("https", "ok");
    metrics.acme_plan("https", 1, 0);
    metrics.tls_file_loaded(TlsFile::Certificate, true);
    metrics.certificates(vec![CertificateExpiry {
        listener: "https".to_owned(),
        names: vec!["example.com".to_owned()],
        serial: "0a".to_owned(),
        not_after: 1,
        staple_until: Some(1),
    }]);
    metrics
}

#[test]
fn metrics_are_those_of_a_scrape_with_their_labels() {
    let listed: BTreeMap<String, String> = rows(&read("docs/metrics.md"))
        .into_iter()
        .filter(|row| row[0].starts_with("portcullis_") || row[0].starts_with("process_"))
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    assert_eq!(listed, scraped());
}

/// `key = value` of a table of the reference, those that are commented out too.
fn reference(table: &str) -> BTreeMap<String, String> {
    let text = read("config/reference.toml");
    let (_, after) = text.split_once(&format!("\n{table}\n")).unwrap();
    let lines = after.lines().take_while(|line| !line.starts_with('['));
    let key = |line: &str| {
        let (key, value) = line.trim_start_matches('#').split_once(" = ")?;
        let is_key =
            key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        is_key.then(|| (key.to_owned(), value.trim_matches('"').to_owned()))
    };
    lines.filter_map(key).collect()
}

#[test]
fn the_operating_guide_lists_every_limit_with_its_default() {
    let listed: BTreeMap<String, String> =
        rows(&read("docs/operating.md")).into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let limits = reference("[limits]");
    assert!(limits.len() > 20, "{limits:?}");
    for (key, default) in limits {
        // Derived, and not the example that stands in the reference.
        let default = if key == "connections" || key == "requests" { "derived".to_owned() } else { default };
        assert_eq!(listed.get(&key), Some(&default), "{key}");
    }
}

#[test]
fn the_readme_shows_the_smallest_configuration_as_it_is() {
    let minimal = read("config/minimal.toml");
    let (_, without_comment) = minimal.split_once("\n\n").unwrap();
    let shown = format!("```toml\n{without_comment}```\n");
    assert!(read("README.md").contains(&shown), "{shown}");
}

#[test]
fn links_of_the_documentation_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = |path: &str| -> Vec<_> {
        fs::read_dir(root.join(path)).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let mut pages: Vec<_> = [folder("docs"), folder("docs/decisions")].concat();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(pages.len() > 5, "{pages:?}");
    pages.push(root.join("README.md"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") {
                assert!(page.parent().unwrap().join(file).exists(), "{}: {target}", page.display());
            }
        }
    }
}
