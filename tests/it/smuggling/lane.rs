//! One proxy with one connection to one backend, attacked by one client after the other.

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use memchr::memmem;
use serde_json::Value;

use super::oracle::{self, From, Reading, Seen};
use crate::support::{
    GUARD,
    engine::{Engine, Setup},
    listen,
};

/// What a backend has seen so far.
#[derive(Debug, Default)]
struct Seens {
    requests: Vec<Seen>,
    /// Bytes that are no request.
    problems: Vec<String>,
}

/// Reads strictly, records everything, and answers with what it was asked.
#[derive(Debug)]
struct Recorder {
    address: SocketAddr,
    seen: Arc<Mutex<Seens>>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Recorder {
    fn new() -> Self {
        let (listener, address) = listen();
        let (seen, stopping) = (Arc::<Mutex<Seens>>::default(), Arc::new(AtomicBool::new(false)));
        let acceptor = thread::spawn({
            let (seen, stopping) = (seen.clone(), stopping.clone());
            move || accept(&listener, &seen, &stopping)
        });
        Recorder { address, seen, stopping, acceptor: Some(acceptor) }
    }

    /// Everything it saw, once all its connections have ended.
    fn finish(mut self) -> Seens {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        self.acceptor.take().unwrap().join().unwrap();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn accept(listener: &TcpListener, seen: &Arc<Mutex<Seens>>, stopping: &AtomicBool) {
    let mut conversations = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if stopping.load(Ordering::SeqCst) {
            break;
        }
        let seen = seen.clone();
        conversations.push(thread::spawn(move || converse(stream, &seen)));
    }
    for conversation in conversations {
        conversation.join().unwrap();
    }
}

fn converse(mut stream: TcpStream, seen: &Mutex<Seens>) {
    stream.set_nodelay(true).unwrap();
    let mut bytes = Vec::new();
    let mut block = [0; 16 * 1024];
    // Of the request at the front: was it answered, was its body asked for?
    let (mut answered, mut asked) = (false, false);
    loop {
        match oracle::read(&bytes, From::Proxy) {
            Ok(Reading::Whole(mut request)) => {
                bytes.drain(..request.raw.len());
                let tunnel = switches(&request);
                if !answered {
                    let _ = stream.write_all(answer(&request).as_bytes());
                }
                (answered, asked) = (false, false);
                if tunnel {
                    let _ = stream.read_to_end(&mut bytes);
                    request.raw.extend_from_slice(&bytes);
                    request.body = std::mem::take(&mut bytes);
                }
                seen.lock().unwrap().requests.push(request);
                continue;
            }
            Ok(Reading::Head(head)) if !answered && comes_early(&head.target) => {
                answered = true;
                let _ = stream.write_all(answer(&head).as_bytes());
            }
            Ok(Reading::Head(head)) if !answered && !asked && head.field("expect").is_some() => {
                asked = true;
                let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            Ok(_) => {}
            Err(problem) => {
                let text = format!("{problem}: {}", bytes.escape_ascii());
                return seen.lock().unwrap().problems.push(text);
            }
        }
        match stream.read(&mut block) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&block[..count]),
        }
    }
    match oracle::read(&bytes, From::Proxy) {
        Ok(Reading::Head(request)) => seen.lock().unwrap().requests.push(request),
        _ if bytes.is_empty() => {}
        rest => seen.lock().unwrap().problems.push(format!("at the end: {rest:?} {}", bytes.escape_ascii())),
    }
}

/// Whether the answer to a target does not wait for the body.
fn comes_early(target: &str) -> bool {
    target.starts_with("/early/") || target.starts_with("/deny/")
}

fn switches(request: &Seen) -> bool {
    request.target.starts_with("/tunnel/") && request.field("upgrade").is_some()
}

fn answer(request: &Seen) -> String {
    if switches(request) {
        return "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                x-seen: tunnel\r\n\r\n"
            .to_owned();
    }
    let status = if request.target.starts_with("/deny/") { "417 Expectation Failed" } else { "200 OK" };
    let body = echo(request);
    let (length, body) = (body.len(), if request.method == "HEAD" { "" } else { &body });
    format!("HTTP/1.1 {status}\r\nx-seen: yes\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn echo(request: &Seen) -> String {
    format!("{} {} {}", request.method, request.target, request.field("host").unwrap())
}

/// Reads what comes first, for a moment.
fn wait_for_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) {
    let mut block = [0; 4096];
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    if let Ok(count) = stream.read(&mut block) {
        answer.extend_from_slice(&block[..count]);
    }
    stream.set_read_timeout(Some(GUARD)).unwrap();
}

/// A client's connection and what it got.
#[derive(Debug)]
struct Sent {
    mark: String,
    peer: SocketAddr,
    bytes: Vec<u8>,
    answer: Vec<u8>,
}

/// One proxy under attack.
#[derive(Debug)]
pub struct Lane {
    pub engine: Engine,
    recorder: Recorder,
    name: String,
    random: fastrand::Rng,
    sent: Vec<Sent>,
    marks: HashSet<String>,
}

impl Lane {
    /// `name` says how to repeat it.
    pub fn new(name: String, seed: u64) -> Self {
        let recorder = Recorder::new();
        // Attacks that wait for more are over soon; a tunnel is one of them.
        let soon = "limits.head_timeout = \"25ms\"\nlimits.body_idle_timeout = \"25ms\"\n\
                    limits.tunnel_idle_timeout = \"25ms\"\nlimits.idle_timeout = \"300ms\"";
        let engine = Setup::new(&[recorder.address])
            .cluster("idle_connections = 1")
            .plain(soon)
            .tls(soon)
            .limits("h2_local_resets = 1000000")
            .start();
        let random = fastrand::Rng::with_seed(seed);
        Lane { engine, recorder, name, random, sent: Vec::new(), marks: HashSet::new() }
    }

    /// A text that nothing else holds.
    pub fn mark(&mut self) -> String {
        let mark = format!("m{:012x}", self.random.u64(..1 << 48));
        self.marks.insert(mark.clone());
        mark
    }

    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    /// Sends an attack on a connection of its own and waits for its end. A request that asks to close
    /// follows, and once more: the first may become a part of what the attack began.
    pub fn attack(&mut self, mark: String, bytes: &[u8]) {
        let end = format!("GET /end/{mark} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n");
        self.exchange(mark, [bytes, end.as_bytes(), end.as_bytes()].concat());
    }

    /// Notes what was sent on a connection that the caller made.
    pub fn note(&mut self, mark: String, peer: SocketAddr, bytes: Vec<u8>) {
        self.sent.push(Sent { mark, peer, bytes, answer: Vec::new() });
    }

    /// Sends an innocent request behind an attack: it must get its own answer.
    pub fn victim(&mut self) {
        let mark = self.mark();
        let request = format!(
            "GET /victim/{mark} HTTP/1.1\r\nhost: victim.example\r\nx-secret: {mark}\r\nconnection: close\r\n\r\n"
        );
        self.exchange(mark.clone(), request.into_bytes());
        let answer = String::from_utf8_lossy(&self.sent.last().unwrap().answer).into_owned();
        let body = format!("\r\n\r\nGET /victim/{mark} victim.example");
        if !(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&body)) {
            self.fail(self.sent.len().saturating_sub(2), &format!("the victim behind it got: {answer}"));
        }
    }

    fn exchange(&mut self, mark: String, bytes: Vec<u8>) {
        let mut stream = TcpStream::connect(self.engine.plain).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        let peer = stream.local_addr().unwrap();
        let (cut, waits) = self.cut(&bytes);
        let mut answer = Vec::new();
        // It may be closed by now, and an answer may still be there.
        let _ = stream.write_all(&bytes[..cut]);
        if waits {
            wait_for_answer(&mut stream, &mut answer);
        }
        let _ = stream.write_all(&bytes[cut..]);
        let end = stream.read_to_end(&mut answer);
        let timed_out = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        let _ = stream.shutdown(Shutdown::Both);
        self.sent.push(Sent { mark, peer, bytes, answer });
        if timed_out {
            self.fail(self.sent.len() - 1, "its connection does not end");
        }
    }

    /// Where to cut an attack in two, and whether the rest waits for an answer to the front: to a
    /// request that is answered before its body, that comes in the middle of the body.
    fn cut(&mut self, bytes: &[u8]) -> (usize, bool) {
        let early = [&b" /early/"[..], b" /deny/"].iter().any(|path| memmem::find(bytes, path).is_some());
        if let (true, Some(end)) = (early && self.random.u8(..4) > 0, memmem::find(bytes, b"\r\n\r\n")) {
            return (bytes.len().min(end + 4 + self.random.usize(..8)), true);
        }
        (if self.random.bool() { bytes.len() } else { self.random.usize(..bytes.len()) }, false)
    }

    fn fail(&self, index: usize, what: &str) -> ! {
        let input = &self.sent[index].bytes;
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smuggling-input");
        std::fs::write(&file, input).unwrap();
        panic!(
            "{} input {index}: {what}\nthe input is in {}:\n{}",
            self.name,
            file.display(),
            input.escape_ascii()
        )
    }

    /// Compares what the proxy logged with what the backend saw; returns how many requests it saw.
    pub fn judge(self) -> usize {
        let Lane { engine, recorder, name, sent, marks, random } = self;
        engine.settled();
        let log = engine.stop();
        let seens = recorder.finish();
        assert_eq!(seens.problems, [""; 0], "{name}");
        // Only to report with.
        let idle = Recorder::new();
        let engine = Engine::new(idle.address);
        let lane = Lane { engine, recorder: idle, name, random, sent, marks };
        lane.compare(&log, &seens.requests);
        lane.recorder.finish();
        seens.requests.len()
    }

    fn compare(&self, log: &[Value], requests: &[Seen]) {
        let mut by_peer: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, sent) in self.sent.iter().enumerate() {
            by_peer.entry(sent.peer.to_string()).or_default().push(index);
        }
        let mut seen: HashMap<&str, &Seen> = HashMap::new();
        for request in requests {
            let id = request.field("x-request-id").unwrap();
            assert!(seen.insert(id, request).is_none(), "{} twice: {}", id, request.raw.escape_ascii());
        }
        let mut lines: HashMap<usize, usize> = HashMap::new();
        for line in log {
            let senders = &by_peer[line["peer"].as_str().unwrap()];
            for sender in senders {
                *lines.entry(*sender).or_default() += 1;
            }
            let request = seen.remove(line["request_id"].as_str().unwrap());
            if let Err(what) = self.matches(line, request, senders) {
                let raw = request.map(|request| request.raw.escape_ascii().to_string());
                self.fail(senders[0], &format!("{what}\nlogged: {line}\nseen: {}", raw.unwrap_or_default()));
            }
        }
        let unknown: Vec<_> = seen.values().map(|request| request.raw.escape_ascii().to_string()).collect();
        assert_eq!(unknown, [""; 0], "{}: the backend saw what nobody logged", self.name);
        self.compare_with_input(log, &by_peer);
        for (index, sent) in self.sent.iter().enumerate() {
            let answer = String::from_utf8_lossy(&sent.answer);
            let answers =
                answer.matches("\r\nx-seen: ").count() + answer.matches("\r\nx-portcullis-reason: ").count();
            if answers > lines.get(&index).copied().unwrap_or_default() {
                self.fail(index, &format!("more answers than lines in the log:\n{answer}"));
            }
            if self.strangers(&answer, &[index]) {
                self.fail(index, &format!("somebody else's answer:\n{answer}"));
            }
        }
    }

    /// Compares what was forwarded with what a client sent over HTTP/1: nothing but its requests, in
    /// their order, and never a part of a body.
    fn compare_with_input(&self, log: &[Value], by_peer: &HashMap<String, Vec<usize>>) {
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
                        self.fail(sender, &format!("no request was sent for this: {line}"));
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
                    self.fail(sender, &format!("{line}\nis not {}", request.raw.escape_ascii()));
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
}
