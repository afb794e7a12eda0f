//! The `doorward` binary.

use std::process::ExitCode;

// Batches allocate and free megabytes at a time; glibc returns them to the system each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match doorward::cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("doorward: {error:#}");
            ExitCode::FAILURE
        }
    }
}
