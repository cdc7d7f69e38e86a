//! Who is told to come by https only.

use crate::support::{
    backend::{Backend, ok},
    client::Client,
    engine::Setup,
    h2::{H2, block_on},
};

#[test]
fn browsers_are_told_over_tls_and_by_whom_the_backend_leaves_it_to() {
    let backend = Backend::new(|conversation| {
        while let Some(request) = conversation.request() {
            let own = "HTTP/1.1 200 OK\r\nstrict-transport-security: max-age=1\r\ncontent-length: 0\r\n\r\n";
            conversation.send(if request.head.contains("/own") { own.to_owned() } else { ok("x") });
        }
    });
    let engine = Setup::new(&[backend.address])
        .routes("[[routes]]\npath = \"/a\"\ncluster = \"web\"")
        .tls("tls.hsts = { max_age = \"365d\", include_subdomains = true, preload = true }")
        .start();
    let mut client = Client::tls(engine.tls);
    let said = "max-age=31536000; includeSubDomains; preload";
    for (path, status, expected) in
        [("/a", 200, Some(said)), ("/a/own", 200, Some("max-age=1")), ("/none", 404, Some(said))]
    {
        let answer = client.get(path);
        assert_eq!((answer.status, answer.field("strict-transport-security")), (status, expected), "{path}");
    }
    block_on(async {
        let mut client = H2::connect(engine.tls).await;
        assert_eq!(client.get("/a").await.field("strict-transport-security"), Some(said));
    });
    assert_eq!(Client::plain(engine.plain).get("/a").field("strict-transport-security"), None);
}
