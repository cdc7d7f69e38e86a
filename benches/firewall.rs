//! What the firewall costs: a look into half a million networks, and a request with lists and rates.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Instant,
};

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net};
use portcullis::{
    config::{self, Networks, Verdict},
    firewall::{Firewall, Request},
};

fn addresses(count: usize) -> Vec<IpAddr> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..count).map(|_| IpAddr::V4(Ipv4Addr::from_bits(random.u32(..)))).collect()
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("networks/find");
    for count in [100, 500_000] {
        let mut random = fastrand::Rng::with_seed(2);
        let entry = |_| {
            let prefix = random.u8(16..=32);
            let network =
                Ipv4Net::new(Ipv4Addr::from_bits(random.u32(..)), prefix).expect("a prefix below 33");
            (IpNet::V4(network.trunc()), Verdict::Deny)
        };
        let networks = Networks::new((0..count).map(entry));
        let addresses = addresses(4096);
        let mut next = addresses.iter().cycle();
        group.bench_function(count.to_string(), |bencher| {
            bencher.iter(|| networks.find(black_box(*next.next().expect("a cycle"))));
        });
    }
    group.finish();
}

fn request(criterion: &mut Criterion) {
    let text = "[[listeners]]\naddress = \"127.0.0.1:80\"\n[[routes]]\ncluster = \"web\"\n\
                firewall.rate_limits = [{ key = \"client_ip\", rate = \"1000000/s\" }]\n\
                [clusters.web]\nbackends = [\"127.0.0.1:1\"]\n\
                [firewall]\nrate_limits = [{ rate = \"1000000/s\" }, { key = \"header:x-key\", rate = \"1000000/s\" }]\n\
                deny = [\"192.0.2.0/24\"]\nbans = { after = 20 }\n";
    let (config, _) = config::parse("bench", text, Path::new("")).expect("a good configuration");
    let firewall = Firewall::new(&config);
    let addresses = addresses(4096);
    let mut next = addresses.iter().cycle();
    criterion.bench_function("firewall/request with three rates", |bencher| {
        bencher.iter(|| {
            let client_ip = *next.next().expect("a cycle");
            let asked = Request { listener: 0, route: Some(0), client_ip, forwarded: true };
            firewall.request(asked, |_| Some(b"a key of some length"), Instant::now())
        });
    });
}

criterion_group!(benches, lookup, request);
criterion_main!(benches);
