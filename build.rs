//! Compiles the protocol's messages, and for the tests its client and server.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let (protos, includes) = (["proto/inference.proto"], ["proto"]);
    // Tensors are slices of the request's body; maps have an order, so that a message has one encoding.
    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_protos(&protos, &includes)?;
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("no OUT_DIR"))?;
    let tests = PathBuf::from(out).join("tonic");
    std::fs::create_dir_all(&tests)?;
    tonic_prost_build::configure().out_dir(tests).compile_protos(&protos, &includes)
}
