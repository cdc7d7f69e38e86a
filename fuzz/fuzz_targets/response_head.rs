//! Response heads: no panic, and whatever is accepted has one length.
#![no_main]

use http::{Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use portcullis::http::{
    fields::FieldId,
    h1::{
        encode,
        head::{HeadEnd, HeadLimits, Underscores, find_head_end},
        response::parse_response,
    },
    message::{BodyLength, ResponseHead},
};

const LIMITS: HeadLimits = HeadLimits {
    head_bytes: 8 << 10,
    uri_bytes: 1 << 10,
    field_bytes: 2 << 10,
    fields: 40,
    underscores: Underscores::Drop,
};

fuzz_target!(|data: &[u8]| {
    let HeadEnd::Complete(end) = find_head_end(data, 0) else { return };
    let raw = &data[..end];
    let mut head = ResponseHead::default();
    for method in [Method::GET, Method::HEAD] {
        if parse_response(raw, &LIMITS, &method, &mut head).is_ok() {
            check(raw, &method, &head);
            check_with_hyper(raw, &method, &head);
        }
    }
});

fn check(raw: &[u8], method: &Method, head: &ResponseHead) {
    let strict = raw.windows(2).all(|pair| (pair[0] == b'\r') == (pair[1] == b'\n'));
    assert!(strict && raw[0] != b'\n' && !raw.contains(&0), "{}", raw.escape_ascii());
    let mut headers = [httparse::EMPTY_HEADER; 64];
    assert_eq!(httparse::Response::new(&mut headers).parse(raw), Ok(httparse::Status::Complete(raw.len())));

    let lengths = head.fields.all(FieldId::ContentLength).count();
    let bodiless = *method == Method::HEAD
        || head.status.is_informational()
        || matches!(head.status.as_u16(), 204 | 304);
    assert_eq!(bodiless, head.body == BodyLength::Empty);
    assert!(lengths <= 1);
    match head.body {
        BodyLength::Exact(bytes) => {
            let value = head.fields.get(FieldId::ContentLength).expect("where the length is from");
            assert_eq!(std::str::from_utf8(value).unwrap().parse(), Ok(bytes));
        }
        BodyLength::Streamed => assert_eq!(lengths, 0),
        BodyLength::UntilClose => assert!(lengths == 0 && !head.keep_alive),
        BodyLength::Empty => {}
    }
    let gone = [FieldId::Connection, FieldId::TransferEncoding, FieldId::Upgrade, FieldId::KeepAlive];
    assert!(gone.iter().all(|id| head.fields.get(*id).is_none()));

    let mut wire = Vec::new();
    encode::write_status_line(&mut wire, head.status);
    encode::write_fields(&mut wire, &head.fields, |_| true);
    if head.body == BodyLength::Streamed {
        encode::write_transfer_encoding_chunked(&mut wire);
    }
    encode::end_head(&mut wire);
    let mut again = ResponseHead::default();
    let roomy = HeadLimits { head_bytes: 16 << 10, fields: 64, ..LIMITS };
    parse_response(&wire, &roomy, method, &mut again).expect("what we write is valid");
    assert_eq!((again.status, again.body), (head.status, head.body));
    assert!(again.fields.iter().eq(head.fields.iter()));
}

/// hyper takes what we take, and reads status, fields, framing and body alike.
fn check_with_hyper(raw: &[u8], method: &Method, head: &ResponseHead) {
    let is_switch = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if head.status.is_informational() && !is_switch {
        // hyper keeps them to itself and waits for the next.
        return;
    }
    let body: &[u8] = match head.body {
        BodyLength::Exact(bytes) => &[b'x'; 64][..usize::try_from(bytes.min(64)).expect("small")],
        BodyLength::Streamed => b"4;x=y\r\nbody\r\n0\r\nx-t: v\r\n\r\n",
        BodyLength::UntilClose => b"to the end",
        BodyLength::Empty => b"",
    };
    let seen = hyper_oracle::response(&[raw, body].concat(), method);
    let Some(seen) = seen else { panic!("hyper refuses {}", raw.escape_ascii()) };
    let shown = || format!("{seen:?} for {head:?}");
    assert_eq!(seen.status, head.status);
    let (announced, payload): (Option<u64>, &[u8]) = match head.body {
        BodyLength::Exact(bytes) => (Some(bytes), body),
        BodyLength::Streamed => (None, b"body"),
        BodyLength::UntilClose => (None, body),
        BodyLength::Empty => (Some(0), b""),
    };
    assert_eq!((seen.body.announced, &seen.body.payload[..]), (announced, payload), "{}", shown());
    assert_eq!(seen.body.is_complete, announced.is_none_or(|bytes| bytes <= 64), "{}", shown());
    for (_, name, value) in head.fields.iter() {
        let mut fields = seen.fields.iter();
        assert!(
            fields.any(|(theirs, held)| theirs.as_str().as_bytes() == name && held.as_bytes() == value),
            "{}",
            shown()
        );
    }
}
