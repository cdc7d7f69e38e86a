//! Encoder against decoder, and each against the h2 crate's.

use http::{HeaderMap, Request, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{Decoder, Encoder};

type Field = (Vec<u8>, Vec<u8>);

/// What happens on a connection.
#[derive(Clone, Debug)]
enum Step {
    Block(Vec<Field>),
    /// The peer's SETTINGS.
    Resize(usize),
}

/// Some that come again and again, some of any bytes.
fn field() -> impl Strategy<Value = Field> {
    let names: Vec<&[u8]> =
        vec![b"server", b"date", b"etag", b"set-cookie", b"age", b"x-a", b"x-b", b"", b":path"];
    let values: Vec<Vec<u8>> =
        [0, 1, 3, 4, 7, 8, 20, 126, 127, 300, 2100].into_iter().map(|length| vec![b'v'; length]).collect();
    let any = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        8 => (proptest::sample::select(names), proptest::sample::select(values))
            .prop_map(|(name, value)| (name.to_vec(), value)),
        1 => (any(), any()),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = vec![0, 31, 32, 33, 100, 500, 4095, 4096, 4097, 65_536];
    proptest::collection::vec(
        prop_oneof![
            6 => proptest::collection::vec(field(), 0..12).prop_map(Step::Block),
            1 => proptest::sample::select(sizes).prop_map(Step::Resize),
        ],
        0..60,
    )
}

proptest! {
    #[test]
    fn the_decoder_reads_what_the_encoder_writes(steps in steps()) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for step in steps {
            match step {
                Step::Resize(bytes) => encoder.set_max_table(bytes),
                Step::Block(fields) => {
                    let (mut block, mut read) = (Vec::new(), Vec::new());
                    encoder.begin(&mut block);
                    for (name, value) in &fields {
                        encoder.field(name, value, &mut block);
                    }
                    decoder.decode(&block, |name, value| read.push((name.to_vec(), value.to_vec()))).unwrap();
                    prop_assert_eq!(read, fields);
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let mut decoder = Decoder::new();
        for block in blocks {
            let _ = decoder.decode(&block, |_, _| {});
        }
    }
}

/// Fields of the nth request and response: alike, new, and in between.
fn fields_of(nth: usize) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in [
        ("server", "portcullis".to_owned()),
        ("content-type", format!("text/{}; charset=utf-8", ["html", "css", "plain"][nth % 3])),
        ("date", format!("Thu, 26 Nov 2026 07:{:02}:00 GMT", nth / 5)),
        ("x-new", format!("{nth}-{}", "#\u{e9}\\".repeat(nth % 7))),
        ("x-long", "long ".repeat(nth % 50)),
        ("set-cookie", format!("a={nth}")),
        ("authorization", "secret".to_owned()),
    ] {
        map.append(name, value.trim().parse().unwrap());
    }
    map
}

/// The server's end of a connection, one frame at a time.
struct Peer {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

impl Peer {
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.io
            .write_all(&[&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat())
            .await
            .unwrap();
    }

    async fn receive(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        (kind, flags, u32::from_be_bytes(stream), payload)
    }

    /// Makes the client's encoder use a table of this size.
    async fn start(&mut self, table_bytes: u16) {
        self.io.read_exact(&mut [0; 24]).await.unwrap();
        let size = u32::from(table_bytes).to_be_bytes();
        self.send(SETTINGS, 0, 0, &[&[0, 1][..], &size].concat()).await;
        loop {
            match self.receive().await {
                (SETTINGS, 1, _, _) => return,
                (SETTINGS, _, _, settings) => {
                    for setting in settings.chunks(6).filter(|setting| setting[..2] == [0, 1]) {
                        let bytes = u32::from_be_bytes(setting[2..].try_into().unwrap());
                        self.encoder.set_max_table(bytes as usize);
                    }
                    self.send(SETTINGS, 1, 0, &[]).await;
                }
                _ => {}
            }
        }
    }

    /// Reads a request, and answers with the same fields.
    async fn answer(&mut self) -> Vec<Field> {
        loop {
            let (kind, _, stream, block) = self.receive().await;
            if kind != HEADERS {
                continue;
            }
            let (mut fields, mut response) = (Vec::new(), Vec::new());
            self.decoder.decode(&block, |name, value| fields.push((name.to_vec(), value.to_vec()))).unwrap();
            self.encoder.begin(&mut response);
            self.encoder.status(StatusCode::IM_A_TEAPOT, &mut response);
            for (name, value) in fields.iter().filter(|(name, _)| name[0] != b':') {
                self.encoder.field(name, value, &mut response);
            }
            self.send(HEADERS, 5, stream, &response).await;
            return fields;
        }
    }
}

#[tokio::test]
async fn the_h2_crate_reads_and_writes_the_same() {
    for (ours, theirs) in [(4096, 4096), (4096, 0), (0, 4096), (200, 65_536), (4096, 200), (100, 100)] {
        let (client_io, io) = tokio::io::duplex(1 << 16);
        let mut peer = Peer { io, encoder: Encoder::new(), decoder: Decoder::new() };
        let mut client = h2::client::Builder::new();
        let handshake = client.header_table_size(theirs).handshake::<_, bytes::Bytes>(client_io);
        let (client, connection) = handshake.await.unwrap();
        let driver = tokio::spawn(connection);
        peer.start(ours).await;
        for nth in 0..80 {
            let expected = fields_of(nth);
            let mut request = Request::get(format!("https://a.example/{nth}")).body(()).unwrap();
            *request.headers_mut() = expected.clone();
            let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
            let received = peer.answer().await;
            let response = response.await.unwrap();
            assert_eq!(
                (response.status(), response.headers()),
                (StatusCode::IM_A_TEAPOT, &expected),
                "{nth}"
            );
            let path = received.iter().find(|(name, _)| name == b":path").map(|(_, value)| &value[..]);
            assert_eq!(path, Some(format!("/{nth}").as_bytes()));
            for (name, value) in &expected {
                let field = (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec());
                assert!(received.contains(&field), "{nth}: {name}");
            }
            assert_eq!(received.len(), expected.len() + 4);
        }
        driver.abort();
    }
}
