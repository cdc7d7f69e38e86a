//! The limits of a listener: defaults, and reading them from `[limits]` and `[[listeners]]`.

use std::time::Duration;

use super::{
    Cap, Limits, Overload,
    diagnostics::Problem,
    reader::{At, Table},
    values::{duration, duration_or, number, number_or, size, size_or_unlimited},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// HTTP/2 windows have 31 bits (RFC 9113 §6.9.1).
const LARGEST_WINDOW: u64 = (1 << 31) - 1;

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_head_bytes: 32 << 10,
            uri_bytes: 8 << 10,
            field_bytes: 16 << 10,
            fields: 100,
            trailer_bytes: 16 << 10,
            chunk_extension_bytes: 16 << 10,
            body_bytes: None,
            request_buffer: 16 << 10,
            handshake_timeout: Duration::from_secs(5),
            concurrent_handshakes: 1000,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            body_idle_timeout: Duration::from_secs(30),
            body_min_rate: 240,
            body_rate_grace: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            write_min_rate: 240,
            tunnel_idle_timeout: Duration::from_hours(1),
            connections: None,
            connections_per_ip: None,
            h2_streams: 100,
            h2_stream_window: 256 << 10,
            h2_connection_window: 1 << 20,
            h2_send_buffer: 64 << 10,
            h2_client_resets: 100,
            h2_local_resets: 50,
            h2_control_frames: 100,
            h2_continuation_frames: 16,
        }
    }
}

/// Reads limits; those that aren't written are as in `base`.
pub(super) fn read(table: &mut Table<'_>, base: &Limits) -> Limits {
    Limits {
        request_head_bytes: At::or(
            table.optional("request_head_bytes", size(KIB..=MIB)),
            base.request_head_bytes,
        ),
        uri_bytes: At::or(table.optional("uri_bytes", size(64..=MIB)), base.uri_bytes),
        field_bytes: At::or(table.optional("field_bytes", size(64..=MIB)), base.field_bytes),
        fields: At::or(table.optional("fields", number(1..=10_000)), base.fields),
        trailer_bytes: At::or(table.optional("trailer_bytes", size(0..=MIB)), base.trailer_bytes),
        chunk_extension_bytes: At::or(
            table.optional("chunk_extension_bytes", size(0..=MIB)),
            base.chunk_extension_bytes,
        ),
        body_bytes: At::or(table.optional("body_bytes", size_or_unlimited), base.body_bytes),
        request_buffer: At::or(table.optional("request_buffer", size(0..=MIB)), base.request_buffer),
        handshake_timeout: At::or(table.optional("handshake_timeout", duration), base.handshake_timeout),
        concurrent_handshakes: At::or(
            table.optional("concurrent_handshakes", number(1..=1_000_000)),
            base.concurrent_handshakes,
        ),
        head_timeout: At::or(table.optional("head_timeout", duration), base.head_timeout),
        idle_timeout: At::or(table.optional("idle_timeout", duration), base.idle_timeout),
        body_idle_timeout: At::or(table.optional("body_idle_timeout", duration), base.body_idle_timeout),
        body_min_rate: At::or(table.optional("body_min_rate", size(0..=GIB)), base.body_min_rate),
        body_rate_grace: At::or(table.optional("body_rate_grace", duration), base.body_rate_grace),
        write_timeout: At::or(table.optional("write_timeout", duration), base.write_timeout),
        write_min_rate: At::or(table.optional("write_min_rate", size(0..=GIB)), base.write_min_rate),
        tunnel_idle_timeout: At::or(
            table.optional("tunnel_idle_timeout", duration),
            base.tunnel_idle_timeout,
        ),
        connections: table
            .optional("connections", number(1..=10_000_000))
            .map(|at| at.value)
            .or(base.connections),
        connections_per_ip: At::or(
            table.optional("connections_per_ip", number_or("off", 1..=10_000_000)),
            base.connections_per_ip,
        ),
        ..h2(table, base)
    }
}

/// Reads the limits of HTTP/2; the others are as in `base`.
fn h2(table: &mut Table<'_>, base: &Limits) -> Limits {
    Limits {
        h2_streams: At::or(table.optional("h2_streams", number(1..=10_000)), base.h2_streams),
        h2_stream_window: At::or(
            table.optional("h2_stream_window", size(KIB..=LARGEST_WINDOW)),
            base.h2_stream_window,
        ),
        // A connection's window begins at 65,535 and can't be made smaller (RFC 9113 §6.9.2).
        h2_connection_window: At::or(
            table.optional("h2_connection_window", size(65_535..=LARGEST_WINDOW)),
            base.h2_connection_window,
        ),
        h2_send_buffer: At::or(table.optional("h2_send_buffer", size(KIB..=GIB)), base.h2_send_buffer),
        h2_client_resets: At::or(
            table.optional("h2_client_resets", number(1..=1_000_000)),
            base.h2_client_resets,
        ),
        h2_local_resets: At::or(
            table.optional("h2_local_resets", number(1..=1_000_000)),
            base.h2_local_resets,
        ),
        h2_control_frames: At::or(
            table.optional("h2_control_frames", number(1..=1_000_000)),
            base.h2_control_frames,
        ),
        h2_continuation_frames: At::or(
            table.optional("h2_continuation_frames", number(0..=1000)),
            base.h2_continuation_frames,
        ),
        ..base.clone()
    }
}

/// What the whole process shares, and no listener has for itself.
pub(super) struct OfTheProcess {
    pub(super) drain_timeout: Duration,
    pub(super) overload: Overload,
}

/// The keys of `OfTheProcess`.
const OF_THE_PROCESS: [&str; 3] = ["drain_timeout", "requests", "overload_delay"];

/// Reads `[limits]`.
pub(super) fn read_for_file(mut table: Table<'_>) -> (Limits, OfTheProcess) {
    let limits = read(&mut table, &Limits::default());
    let requests = table.optional("requests", number_or("off", 1..=10_000_000));
    let of_the_process = OfTheProcess {
        drain_timeout: At::or(table.optional("drain_timeout", duration), Duration::from_secs(30)),
        overload: Overload {
            requests: requests.map_or(Cap::Derived, |at| at.value.map_or(Cap::Off, Cap::At)),
            delay: At::or(
                table.optional("overload_delay", duration_or("off")),
                Some(Duration::from_millis(500)),
            ),
        },
    };
    table.finish();
    (limits, of_the_process)
}

/// Reads the limits of one listener over those of the whole file.
pub(super) fn read_for_listener(mut table: Table<'_>, base: &Limits) -> Limits {
    let limits = read(&mut table, base);
    for key in OF_THE_PROCESS {
        if let Some(span) = table.place_of(key) {
            let problem = Problem::error(span, format!("\"{key}\" can't be set on one listener"));
            table
                .report(problem.help("it is of the whole process: write it under [limits] at the top level"));
        }
    }
    table.finish();
    limits
}
