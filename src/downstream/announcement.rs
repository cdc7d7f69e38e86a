//! The PROXY protocol header in front of a connection: who has to send one, and reading it.

use std::{fmt, io, net::IpAddr};

use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    error::Reason,
    http::proxy_protocol::{self, Ends, Malformed, Parsed},
    proxy::{
        client,
        worker::{Client, Worker, reject},
    },
};

/// What is looked at in one go; most headers are shorter.
const PIECE: usize = 256;

/// Whether a connection from this address has to begin with a header; it is not guessed from the
/// bytes, or everybody could name whom they like.
pub fn is_due(worker: &Worker, listener: usize, peer: IpAddr) -> bool {
    let view = worker.view();
    let rule = &view.config.listeners[listener].proxy_protocol;
    rule.as_ref().is_some_and(|rule| client::is_trusted(&rule.from, peer))
}

/// Reads the header within its deadline and not a byte of what follows it: the two ends that it
/// names, if it names any. A failure is on record when this returns.
pub async fn receive(
    worker: &Worker,
    client: &Client,
    stream: &mut TcpStream,
) -> Result<Option<Ends>, Failure> {
    let view = worker.view();
    // The rule may be gone since the connection was accepted.
    let Some(rule) = &view.config.listeners[client.listener].proxy_protocol else { return Ok(None) };
    let read = tokio::time::timeout(rule.timeout, read(stream)).await;
    let result = read.unwrap_or(Err(Failure::Late));
    if let Err(failure) = &result
        && !matches!(failure, Failure::Silent)
    {
        let name = &view.listeners[client.listener].name;
        tracing::debug!("listener {name}: connection from {}: {failure}", client.peer);
        reject(worker, client.listener, Reason::ProxyProtocol);
    }
    result
}

/// Why there is no header.
#[derive(Debug)]
pub enum Failure {
    /// The peer closed without a word: how balancers check that a port is open, and on no record.
    Silent,
    /// The peer closed within the header.
    Closed,
    Late,
    Broken(io::Error),
    Malformed(Malformed),
}

/// Looks at what has arrived before it takes it: of a segment that holds more than the header, only
/// the header. What does not complete a header is all part of it and taken at once, so each look
/// waits for new bytes.
async fn read(stream: &mut TcpStream) -> Result<Option<Ends>, Failure> {
    let mut header = Vec::new();
    let mut piece = [0; PIECE];
    loop {
        let count = stream.peek(&mut piece).await.map_err(Failure::Broken)?;
        if count == 0 {
            return Err(if header.is_empty() { Failure::Silent } else { Failure::Closed });
        }
        let taken = header.len();
        header.extend_from_slice(&piece[..count]);
        let parsed = proxy_protocol::parse(&header).map_err(Failure::Malformed)?;
        let end = match parsed {
            Parsed::Incomplete => header.len(),
            Parsed::Complete { length, .. } => length,
        };
        stream.read_exact(&mut piece[..end - taken]).await.map_err(Failure::Broken)?;
        if let Parsed::Complete { ends, .. } = parsed {
            return Ok(ends);
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Silent => f.write_str("closed without a word"),
            Failure::Closed => f.write_str("closed within the PROXY protocol header"),
            Failure::Late => f.write_str("no complete PROXY protocol header in time"),
            Failure::Broken(error) => write!(f, "reading the PROXY protocol header failed: {error}"),
            Failure::Malformed(malformed) => write!(f, "bad PROXY protocol header: {malformed}"),
        }
    }
}
