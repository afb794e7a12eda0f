//! The wire formats, as metrics name them.

/// The wire format of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// KServe V1 and TensorFlow Serving, REST.
    KserveV1,
    /// Open Inference Protocol V2, gRPC; each message of a stream is a request.
    OipGrpc,
    /// Open Inference Protocol V2, REST.
    OipHttp,
    /// Images, as TorchServe, SageMaker containers, BentoML and LitServe take them.
    RawImage,
}

// === impl Protocol ===

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 4] = [Self::KserveV1, Self::OipGrpc, Self::OipHttp, Self::RawImage];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::KserveV1 => "kserve_v1",
            Self::OipGrpc => "oip_grpc",
            Self::OipHttp => "oip_http",
            Self::RawImage => "raw_image",
        }
    }
}
