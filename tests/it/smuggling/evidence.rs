//! What was sent, what was logged, what the backend saw: are they the same requests?

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
};

use serde_json::Value;

use super::oracle::{self, From, Seen};

/// What a backend has seen so far.
#[derive(Debug, Default)]
pub struct Seens {
    pub requests: Vec<Seen>,
    /// Bytes that are no request.
    pub problems: Vec<String>,
}

/// A client's connection and what it got.
#[derive(Debug)]
pub struct Sent {
    pub mark: String,
    pub peer: SocketAddr,
    pub bytes: Vec<u8>,
    pub answer: Vec<u8>,
}

/// What one lane sent.
#[derive(Debug)]
pub struct Evidence {
    /// Says how to repeat it.
    name: String,
    pub sent: Vec<Sent>,
    pub marks: HashSet<String>,
}

/// Whether the answer to a target does not wait for the body.
pub fn comes_early(target: &str) -> bool {
    target.starts_with("/early/") || target.starts_with("/deny/")
}

fn raw(request: &Seen) -> String {
    request.raw.escape_ascii().to_string()
}

impl Evidence {
    pub fn new(name: String) -> Self {
        Evidence { name, sent: Vec::new(), marks: HashSet::new() }
    }

    /// Fails unless what the proxy logged is what the backend saw, and what was sent.
    pub fn compare(&self, log: &[Value], seens: &Seens) {
        if let Some(problem) = seens.problems.first() {
            let about = self.senders_in(problem);
            self.fail(&about, &format!("no request at the backend: {problem}"), log, seens);
        }
        let mut by_peer: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, sent) in self.sent.iter().enumerate() {
            by_peer.entry(sent.peer.to_string()).or_default().push(index);
        }
        let mut seen: HashMap<&str, &Seen> = HashMap::new();
        for request in &seens.requests {
            let id = request.field("x-request-id").unwrap();
            if seen.insert(id, request).is_some() {
                self.fail(&self.senders_in(&raw(request)), &format!("{id} twice"), log, seens);
            }
        }
        let mut lines: HashMap<usize, usize> = HashMap::new();
        for line in log {
            let senders = &by_peer[line["peer"].as_str().unwrap()];
            for sender in senders {
                *lines.entry(*sender).or_default() += 1;
            }
            let request = seen.remove(line["request_id"].as_str().unwrap());
            if let Err(what) = self.matches(line, request, senders) {
                let seen = request.map(raw).unwrap_or_default();
                self.fail(senders, &format!("{what}\nlogged: {line}\nseen: {seen}"), log, seens);
            }
        }
        if let Some(request) = seen.values().next() {
            let what = format!("the backend saw what nobody logged: {}", raw(request));
            self.fail(&self.senders_in(&what), &what, log, seens);
        }
        self.compare_with_input(log, &by_peer, seens);
        for (index, sent) in self.sent.iter().enumerate() {
            let answer = String::from_utf8_lossy(&sent.answer);
            let answers =
                answer.matches("\r\nx-seen: ").count() + answer.matches("\r\nx-portcullis-reason: ").count();
            if answers > lines.get(&index).copied().unwrap_or_default() {
                self.fail(&[index], "more answers than lines in the log", log, seens);
            }
            if self.strangers(&answer, &[index]) {
                self.fail(&[index], "somebody else's answer", log, seens);
            }
        }
    }

    /// Compares what was forwarded with what a client sent over HTTP/1: nothing but its requests, in
    /// their order, and never a part of a body.
    fn compare_with_input(&self, log: &[Value], by_peer: &HashMap<String, Vec<usize>>, seens: &Seens) {
        let mut lines: HashMap<&str, Vec<&Value>> = HashMap::new();
        for line in log.iter().filter(|line| line["protocol"] == "http1") {
            lines.entry(line["peer"].as_str().unwrap()).or_default().push(line);
        }
        for (peer, lines) in lines {
            // A port that was used twice can't be told apart.
            let [sender] = by_peer[peer][..] else { continue };
            let sent = oracle::read_all(&self.sent[sender].bytes, From::Client);
            for (index, line) in lines.iter().enumerate() {
                let whole = line["attempts"] == 1 && line["reason"].is_null();
                let Some(request) = sent.get(index) else {
                    if whole {
                        self.fail(&[sender], &format!("no request was sent for this: {line}"), log, seens);
                    }
                    continue;
                };
                let (bytes, body) = (line["bytes_in"].as_u64().unwrap(), request.body.len() as u64);
                let tunnel = line["status"] == 101;
                let early = comes_early(line["path"].as_str().unwrap());
                let same = line["method"] == request.method
                    && (bytes <= body || tunnel)
                    && (early || !request.malformed && !request.broken_off);
                // What an answer came too early for, or a tunnel, is the last of its connection.
                if whole && (!same || (bytes != body || request.malformed) && index + 1 < lines.len()) {
                    self.fail(&[sender], &format!("{line}\nis not {}", raw(request)), log, seens);
                }
            }
        }
    }

    /// Whether one line of the log and one request at the backend are the same request.
    fn matches(&self, line: &Value, request: Option<&Seen>, senders: &[usize]) -> Result<(), &'static str> {
        let forwarded = line["attempts"].as_u64() > Some(0);
        let Some(request) = request else {
            return if forwarded && line["reason"].is_null() { Err("logged, never seen") } else { Ok(()) };
        };
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let target = match line["query"].as_str() {
            Some(query) => format!("{}?{query}", text("path")),
            None => text("path"),
        };
        let host = request.field("host").unwrap();
        let bytes = line["bytes_in"].as_u64().unwrap();
        let body = request.body.len() as u64;
        let early = comes_early(&request.target);
        match () {
            () if line["attempts"] != 1 => Err("not one attempt"),
            () if request.method != text("method") => Err("another method"),
            () if request.target != target => Err("another target"),
            () if host.split(':').next() != Some(&text("host")) && !text("host").is_empty() => {
                Err("another host")
            }
            () if request.broken_off && line["reason"].is_null() && !early => Err("cut, and logged as whole"),
            () if !request.broken_off && body != bytes => Err("a body of another length"),
            () if body > bytes => Err("more body than was read"),
            () if self.strangers(&String::from_utf8_lossy(&request.raw), senders) => {
                Err("bytes of another connection")
            }
            () => Ok(()),
        }
    }

    /// Whether a text holds a mark that belongs to none of these senders, or more than one mark.
    fn strangers(&self, text: &str, senders: &[usize]) -> bool {
        let texts = text.match_indices('m').filter_map(|(at, _)| text.get(at..at + 13));
        let marks: HashSet<&str> = texts.filter(|text| self.marks.contains(*text)).collect();
        let own = |mark: &&str| senders.iter().any(|sender| self.sent[*sender].mark == *mark);
        marks.len() > 1 || !marks.iter().all(own)
    }

    /// Connections whose mark is in a text.
    fn senders_in(&self, text: &str) -> Vec<usize> {
        let has = |(index, sent): (usize, &Sent)| text.contains(&sent.mark).then_some(index);
        self.sent.iter().enumerate().filter_map(has).collect()
    }

    /// Fails with everything that is known about some connections: what they sent and got, what was
    /// logged of them, and what the backend saw that has to do with them.
    pub fn fail(&self, about: &[usize], what: &str, log: &[Value], seens: &Seens) -> ! {
        let mut report = format!("{} connections {about:?}: {what}\n", self.name);
        let mut words: Vec<&str> = Vec::new();
        for sent in about.iter().map(|index| &self.sent[*index]) {
            let Sent { mark, peer, bytes, answer } = sent;
            let (bytes, answer) = (bytes.escape_ascii(), answer.escape_ascii());
            // WHY: nothing fails that writes to a text.
            let _ = write!(report, "{mark} from {peer}\nsent: {bytes}\ngot: {answer}\n");
            words.push(mark);
            let peer = peer.to_string();
            for line in log.iter().filter(|line| line["peer"] == *peer) {
                let _ = writeln!(report, "logged: {line}");
                words.extend(line["request_id"].as_str());
            }
        }
        let texts = seens.requests.iter().map(|request| {
            let cut = if request.broken_off { " (broken off)" } else { "" };
            format!("{}{cut}", raw(request))
        });
        for text in texts.chain(seens.problems.iter().cloned()) {
            if words.iter().any(|word| text.contains(word)) {
                let _ = writeln!(report, "the backend saw: {text}");
            }
        }
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smuggling-failure.txt");
        std::fs::write(&file, &report).unwrap();
        panic!("{report}this is in {} too", file.display())
    }
}
