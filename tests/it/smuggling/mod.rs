//! Does anything get past the proxy that it did not mean to send? Thousands of attacks and
//! variations of them, each with a victim behind it on the same upstream connection; afterwards
//! what the proxy logged and what the backend saw must be the same requests.

mod corpus;
mod downgrade;
mod evidence;
mod lane;
mod mutation;
mod oracle;

use std::{panic, thread};

use lane::Lane;

/// Of everything that is random here. A failure names the lane and the input, which repeat exactly.
const SEED: u64 = 0x0b5e_55ed;

/// Proxies side by side: most of the time an attack waits for a deadline.
const LANES: usize = 8;

/// Runs a share of the attacks in each lane.
fn in_lanes(run: impl Fn(usize, Lane) -> usize + Sync) {
    let seen: usize = thread::scope(|scope| {
        let run = &run;
        let lanes: Vec<_> = (0..LANES)
            .map(|index| {
                let seed = SEED + index as u64;
                scope.spawn(move || run(index, Lane::new(format!("seed {SEED:#x}, lane {index},"), seed)))
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|fault| panic::resume_unwind(fault))).sum()
    });
    assert!(seen > 1000, "{seen} requests reached the backends: the attacks do not even begin");
}

#[test]
fn ten_thousand_mutations_leave_no_difference_between_the_log_and_the_backend() {
    const ATTACKS: usize = 10_000;
    let corpus = corpus::corpus();
    in_lanes(|index, mut lane| {
        for number in (index..ATTACKS).step_by(LANES) {
            let mark = lane.mark();
            let known = corpus.get(number);
            let base = known.unwrap_or_else(|| &corpus[lane.random().usize(..corpus.len())]);
            let mut attack = corpus::fill(base, &mark).into_bytes();
            if known.is_none() {
                mutation::mutate(&mut attack, &corpus, lane.random());
            }
            lane.attack(mark, &attack);
            lane.victim();
        }
        lane.judge()
    });
}

#[test]
fn mutations_over_http2_leave_no_difference_between_the_log_and_the_backend() {
    in_lanes(|_, mut lane| {
        downgrade::run(&mut lane, 4000 / LANES);
        lane.judge()
    });
}
