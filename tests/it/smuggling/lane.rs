//! One proxy with one connection to one backend, attacked by one client after the other.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use memchr::memmem;

use super::{
    evidence::{Evidence, Seens, Sent, comes_early},
    oracle::{self, From, Reading, Seen},
};
use crate::support::{
    GUARD,
    engine::{Engine, Setup},
    listen,
};

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

/// One proxy under attack.
#[derive(Debug)]
pub struct Lane {
    pub engine: Engine,
    recorder: Recorder,
    random: fastrand::Rng,
    evidence: Evidence,
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
            // Victims are in no hurry: what happens to them is never a matter of a busy machine.
            .more("[[listeners]]\nname = \"victims\"\naddress = \"127.0.0.1:0\"")
            .limits("h2_local_resets = 1000000")
            .start();
        Lane { engine, recorder, random: fastrand::Rng::with_seed(seed), evidence: Evidence::new(name) }
    }

    /// A text that nothing else holds.
    pub fn mark(&mut self) -> String {
        let mark = format!("m{:012x}", self.random.u64(..1 << 48));
        self.evidence.marks.insert(mark.clone());
        mark
    }

    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    /// Sends an attack on a connection of its own and waits for its end. A request that asks to close
    /// follows, and once more: the first may become a part of what the attack began.
    pub fn attack(&mut self, mark: String, bytes: &[u8]) {
        let end = format!("GET /end/{mark} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n");
        self.exchange(self.engine.plain, mark, [bytes, end.as_bytes(), end.as_bytes()].concat());
    }

    /// Notes what was sent on a connection that the caller made.
    pub fn note(&mut self, mark: String, peer: SocketAddr, bytes: Vec<u8>) {
        self.evidence.sent.push(Sent { mark, peer, bytes, answer: Vec::new() });
    }

    /// Sends an innocent request behind an attack: it must get its own answer.
    pub fn victim(&mut self) {
        let mark = self.mark();
        let request = format!(
            "GET /victim/{mark} HTTP/1.1\r\nhost: victim.example\r\nx-secret: {mark}\r\nconnection: close\r\n\r\n"
        );
        self.exchange(self.engine.others[0], mark.clone(), request.into_bytes());
        let answer = String::from_utf8_lossy(&self.evidence.sent.last().unwrap().answer).into_owned();
        let body = format!("\r\n\r\nGET /victim/{mark} victim.example");
        if !(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&body)) {
            self.fail("the victim got no answer, or another one");
        }
    }

    fn exchange(&mut self, listener: SocketAddr, mark: String, bytes: Vec<u8>) {
        let mut stream = TcpStream::connect(listener).unwrap();
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
        self.evidence.sent.push(Sent { mark, peer, bytes, answer });
        if timed_out {
            self.fail("the connection does not end");
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

    /// Fails with what is known about the last connection and the attack before it.
    fn fail(&self, what: &str) -> ! {
        let last = self.evidence.sent.len() - 1;
        let seens = self.recorder.seen.lock().unwrap();
        self.evidence.fail(&[last.saturating_sub(1), last], what, &self.engine.log(), &seens)
    }

    /// Compares what the proxy logged with what the backend saw; returns how many requests it saw.
    pub fn judge(self) -> usize {
        let Lane { engine, recorder, evidence, .. } = self;
        engine.settled();
        let log = engine.stop();
        let seens = recorder.finish();
        evidence.compare(&log, &seens);
        seens.requests.len()
    }
}
