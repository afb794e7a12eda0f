//! Compiles the client and the server of the gRPC protocol, which the tests put around the firewall.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("no OUT_DIR"))?;
    let tests = PathBuf::from(out).join("tonic");
    std::fs::create_dir_all(&tests)?;
    let folder = "crates/doorward-protocol/proto";
    tonic_prost_build::configure()
        .out_dir(tests)
        .compile_protos(&[&format!("{folder}/inference.proto")], &[&folder.to_owned()])
}
