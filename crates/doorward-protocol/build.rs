//! Compiles the protocol's messages.

fn main() -> std::io::Result<()> {
    // Tensors are slices of the request's body; maps have an order, so that a message has one encoding.
    prost_build::Config::new()
        .bytes(["."])
        .btree_map(["."])
        .compile_protos(&["proto/inference.proto"], &["proto"])
}
