//! The codecs by themselves: HTTP/1 heads in and out, chunked bodies, HPACK.
//!
//! `cargo bench --bench codec`; the figures to watch are `request_head/*` (one a request),
//! `forward/*` (one a request and one a response) and `hpack/*`.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{Method, StatusCode};
use portcullis::http::{
    fields::FieldId,
    h1::{
        encode,
        framing::{BodyDecoder, BodyLimits, Decoded},
        head::{HeadEnd, HeadLimits, Underscores, find_head_end},
        request::parse_request,
        response::parse_response,
    },
    h2::{
        floods::FrameLimits,
        hpack::{Decoder, Encoder},
        multiplexer::{Multiplexer, Settings},
    },
    message::{BodyLength, RequestHead, ResponseHead},
};
use tokio::time::Instant;

const LIMITS: HeadLimits = HeadLimits {
    head_bytes: 32 << 10,
    uri_bytes: 8 << 10,
    field_bytes: 16 << 10,
    fields: 100,
    underscores: Underscores::Drop,
};

/// What wrk sends.
const SMALL: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: 127.0.0.1:8443\r\n\r\n";

const CURL: &[u8] =
    b"GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n";

const BROWSER: &[u8] = b"GET /assets/app.3f9c1b.js?v=20260801 HTTP/1.1\r\n\
    Host: www.example.com\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"126\", \"Not.A/Brand\";v=\"24\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: no-cors\r\n\
    Sec-Fetch-Dest: script\r\n\
    Referer: https://www.example.com/shop/cart\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Cookie: session=8c7d9e0f1a2b3c4d5e6f; theme=dark; consent=yes\r\n\r\n";

/// What nginx answers.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Sat, 22 Aug 2026 10:00:00 GMT\r\n\
    Content-Type: text/html\r\n\
    Content-Length: 1024\r\n\
    Last-Modified: Fri, 21 Aug 2026 09:00:00 GMT\r\n\
    Connection: keep-alive\r\n\
    ETag: \"66c5d1a0-400\"\r\n\
    Accept-Ranges: bytes\r\n\r\n";

fn heads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head_end");
    for (name, bytes) in [("small", SMALL), ("browser", BROWSER)] {
        group.bench_function(name, |bencher| bencher.iter(|| find_head_end(black_box(bytes), 0)));
    }
    group.finish();

    let mut group = criterion.benchmark_group("request_head");
    let mut head = RequestHead::default();
    for (name, bytes) in [("small", SMALL), ("curl", CURL), ("browser", BROWSER)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| parse_request(black_box(bytes), &LIMITS, &mut head));
        });
        assert_eq!(head.body, BodyLength::Empty, "{name} parses");
    }
    group.bench_function("browser_whole", |bencher| {
        bencher.iter(|| {
            let HeadEnd::Complete(len) = find_head_end(black_box(BROWSER), 0) else { return Ok(()) };
            parse_request(&BROWSER[..len], &LIMITS, &mut head)
        });
    });
    group.finish();

    let mut response = ResponseHead::default();
    criterion.bench_function("response_head/nginx", |bencher| {
        bencher.iter(|| parse_response(black_box(RESPONSE), &LIMITS, &Method::GET, &mut response));
    });
    assert_eq!(response.body, BodyLength::Exact(1024));
}

fn forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    let mut head = RequestHead::default();
    let mut out = Vec::with_capacity(4096);
    for (name, bytes) in [("curl", CURL), ("browser", BROWSER)] {
        parse_request(bytes, &LIMITS, &mut head).expect("a valid head");
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                write_request(black_box(&head), &mut out);
            });
        });
    }
    group.finish();
}

/// As the proxy writes it.
fn write_request(head: &RequestHead, out: &mut Vec<u8>) {
    encode::write_request_line(out, &head.method, &head.target);
    encode::write_field(out, "host", head.authority().as_bytes());
    encode::write_fields(out, &head.fields, |id| {
        !matches!(id, FieldId::ContentLength | FieldId::XForwardedFor | FieldId::XForwardedProto)
    });
    encode::write_field(out, "x-forwarded-for", b"203.0.113.7");
    encode::write_field(out, "x-forwarded-proto", b"https");
    encode::write_field(out, "via", b"1.1 portcullis");
    encode::end_head(out);
}

fn bodies(criterion: &mut Criterion) {
    let mut wire = Vec::new();
    for _ in 0..16 {
        encode::write_chunk_header(&mut wire, 4096);
        wire.resize(wire.len() + 4096, b'x');
        wire.extend_from_slice(encode::CRLF);
    }
    wire.extend_from_slice(encode::LAST_CHUNK);
    let limits = BodyLimits {
        trailer_bytes: 16 << 10,
        chunk_extension_bytes: 16 << 10,
        fields: 100,
        underscores: Underscores::Drop,
    };
    let mut group = criterion.benchmark_group("chunked");
    group.throughput(Throughput::Bytes(64 << 10));
    group.bench_function("decode_64k_in_4k", |bencher| {
        bencher.iter(|| decode_all(BodyDecoder::new(BodyLength::Streamed, limits), black_box(&wire)));
    });
    group.finish();
    assert_eq!(decode_all(BodyDecoder::new(BodyLength::Streamed, limits), &wire), 64 << 10);
}

fn decode_all(mut decoder: BodyDecoder, mut input: &[u8]) -> usize {
    let mut payload = 0;
    loop {
        match decoder.decode(input).expect("a valid body") {
            Decoded::Data { skip, len } => {
                payload += len;
                decoder.advance(len);
                input = &input[skip + len..];
            }
            Decoded::NeedMore { .. } | Decoded::End { .. } => return payload,
        }
    }
}

/// What a read of an HTTP/2 client's bytes costs, the clock included.
fn frames(c: &mut Criterion) {
    let settings = Settings {
        streams: u32::MAX,
        stream_window: 1 << 30,
        connection_window: 1 << 30,
        send_buffer: 64 << 10,
        head: LIMITS,
        trailer_bytes: 16 << 10,
        frames: FrameLimits {
            resets: usize::MAX,
            control_frames: usize::MAX,
            local_resets: usize::MAX,
            continuation_frames: 16,
            head_timeout: Duration::from_secs(10),
        },
        linger: Duration::ZERO,
    };
    // Each head opens a stream, so each round has a connection of its own.
    let head = |stream: u8| {
        let block = b"\x82\x87\x84\x41\x09a.example\x7a\x04curl";
        [&[0, 0, 20, 1, 5, 0, 0, 0, stream][..], block].concat()
    };
    let update: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let greeting: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let reads = [
        ("greeting", greeting.to_vec()),
        ("request", [greeting, &head(1)].concat()),
        ("request_and_updates", [greeting, update, update, &head(1)].concat()),
        ("32_requests", [greeting.to_vec(), (0..32).flat_map(|turn| head(2 * turn + 1)).collect()].concat()),
    ];
    let mut group = c.benchmark_group("h2_frames");
    for (name, bytes) in reads {
        group.bench_function(name, |b| {
            b.iter_batched(
                || Multiplexer::new(settings),
                |mut multiplexer| {
                    let taken = multiplexer.receive(black_box(&bytes), Instant::now(), &mut Box::default);
                    assert_eq!(taken, bytes.len());
                    multiplexer
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A browser's first request: everything new, in the Huffman code. The seed has two bytes before it.
const FIRST_BLOCK: &[u8] = include_bytes!("../fuzz/seeds/hpack/browser");
/// Its next one, to another path.
const NEXT_BLOCK: &[u8] =
    b"\x82\xcc\x87\x04\x98\x60\x68\x41\x52\x86\x10\x64\x95\x77\x5d\x18\xc0\x45\xc8\x84\x7f\
    \x9d\xe0\x10\x04\xe0\x1e\x00\x7f\xca\xc9\xc8\xc7\xc6\xc5\xc4\xc3\xc2\xc1\xc0\xbf\xbe";

/// What a backend's response becomes.
const RESPONSE_FIELDS: [(&[u8], &[u8]); 8] = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-length", b"15324"),
    (b"date", b"Sat, 22 Aug 2026 10:00:00 GMT"),
    (b"server", b"nginx/1.22.1"),
    (b"cache-control", b"public, max-age=3600"),
    (b"etag", b"\"66c5d1a0-400\""),
    (b"vary", b"accept-encoding"),
    (b"x-request-id", b"8c7d9e0f1a2b3c4d5e6f708192a3b4c5"),
];

fn hpack(c: &mut Criterion) {
    let mut group = c.benchmark_group("hpack");
    let read = |decoder: &mut Decoder, block| {
        let mut bytes = 0;
        decoder.decode(black_box(block), |name, value| bytes += name.len() + value.len()).map(|()| bytes)
    };
    group.bench_function("decode_first", |b| b.iter(|| read(&mut Decoder::new(), &FIRST_BLOCK[2..])));
    let mut decoder = Decoder::new();
    assert_eq!(read(&mut decoder, &FIRST_BLOCK[2..]), Ok(519));
    group.bench_function("decode_next", |b| b.iter(|| read(&mut decoder, NEXT_BLOCK)));
    assert_eq!(read(&mut decoder, NEXT_BLOCK), Ok(521));

    let mut out = Vec::with_capacity(4096);
    let mut write = |encoder: &mut Encoder| {
        out.clear();
        encoder.begin(&mut out);
        encoder.status(StatusCode::OK, &mut out);
        for (name, value) in black_box(&RESPONSE_FIELDS) {
            encoder.field(name, value, &mut out);
        }
        out.len()
    };
    group.bench_function("encode_first", |b| b.iter(|| write(&mut Encoder::new())));
    let mut encoder = Encoder::new();
    assert_eq!([(); 3].map(|()| write(&mut encoder)), [188, 182, 62]);
    group.bench_function("encode_next", |b| b.iter(|| write(&mut encoder)));
    group.finish();
}

criterion_group!(benches, heads, forward, bodies, frames, hpack);
criterion_main!(benches);
