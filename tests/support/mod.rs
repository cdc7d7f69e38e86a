//! What the tests share: the real engine in this process, scripted backends, clients that send
//! literal bytes.
//!
//! Nothing here sleeps: helpers wait for events, and a guard ends a wait that would last for ever.
//! A panic in a thread of a helper fails the test that owns the helper.

// WHY: each binary that includes this uses a part of it, and a panic is how a test fails.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod backend;
pub mod certificates;
pub mod client;
pub mod engine;
pub mod h2;
pub mod raw_h2;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

/// No test may wait longer for anything.
pub const GUARD: Duration = Duration::from_secs(15);

/// Something that happens once and that others wait for.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    #[track_caller]
    pub fn wait(&self) {
        let opened = self.0.0.lock().unwrap();
        let (opened, _) = self.0.1.wait_timeout_while(opened, GUARD, |open| !*open).unwrap();
        assert!(*opened, "the gate did not open in {GUARD:?}");
    }
}

/// Asks again and again until the answer is yes.
#[track_caller]
pub fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + GUARD;
    while !check() {
        assert!(Instant::now() < end, "{what} did not come true in {GUARD:?}");
        std::thread::yield_now();
    }
}

/// An address that refuses connections for as long as this lives: bound, but not listening, so
/// nobody else gets the port.
#[derive(Debug)]
pub struct Refusing {
    pub address: SocketAddr,
    _socket: socket2::Socket,
}

impl Refusing {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Refusing { address, _socket: socket }
    }
}

/// A listening socket on a port that the kernel chose.
pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}
