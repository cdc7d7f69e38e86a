//! Clusters, certificates and backends for the tests of this folder; all on loopback, port 0.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
};
use tokio_rustls::TlsAcceptor;

use crate::config::{
    Backend, Check, Cluster, ClusterTls, Health, HttpCheck, Policy, Protocol, TlsVersion, TrustedCa,
};

/// A cluster without TLS and health checks.
pub(super) fn cluster_config(addresses: &[&str]) -> Cluster {
    let backend = |address: &&str| {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        let host = host.trim_matches(['[', ']']).to_owned();
        Backend { address: (*address).to_owned(), host, port: port.parse().expect("a port"), weight: 1 }
    };
    Cluster {
        name: "web".to_owned(),
        backends: addresses.iter().map(backend).collect(),
        policy: Policy::RoundRobin,
        protocol: Protocol::Http1,
        tls: None,
        health: None,
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(5),
        response_idle_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        idle_connections: Some(1),
        retries: 1,
        proxy_protocol: false,
    }
}

/// TCP checks as by default, only faster.
pub(super) fn health() -> Health {
    Health {
        check: Check::Tcp,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(5),
        rise: 2,
        fall: 3,
        port: None,
        fail_open_below: 50,
    }
}

pub(super) fn http_check() -> HttpCheck {
    HttpCheck {
        path: "/healthz?full=1".to_owned(),
        host: None,
        expect_status: vec![200..=399],
        expect_body: None,
    }
}

/// A CA of its own for each test.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    /// Cluster settings that trust this CA.
    pub(super) fn tls(&self) -> ClusterTls {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a CA");
        ClusterTls {
            ca: TrustedCa::File("ca.crt".into(), Arc::new(roots)),
            server_name: None,
            names: Vec::new(),
            certificate: None,
            crl: None,
            minimum_version: TlsVersion::Tls12,
            verify: true,
        }
    }

    /// What a backend with a certificate for `name` accepts with; expired if `last_year` is over.
    pub(super) fn acceptor(&self, name: &str, last_year: i32, alpn: &[&str]) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they match");
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Accepts TLS for ever and answers every connection with one line, then closes.
pub(super) async fn tls_backend(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.write_all(b"hello").await;
                let _ = stream.shutdown().await;
            }
        }
    });
    address
}

/// Reads a request head on each connection, answers with the same bytes, closes.
pub(super) async fn backend(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let (listener, answer) = (TcpListener::bind("127.0.0.1:0").await.expect("a port"), answer.into());
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n")
                && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0)
            {}
            let _ = stream.write_all(&answer).await;
        }
    });
    address
}

/// A port of loopback that nobody listens on, and nobody can while the socket lives.
pub(super) fn closed_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}
