//! The binary: arguments in, exit code out.

use std::process::ExitCode;

/// Many small buffers of mixed life: measured cheaper than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    portcullis::cli::main()
}
