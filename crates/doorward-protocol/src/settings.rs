//! The servers whose image requests are taken.

use serde::Deserialize;

/// `[images]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRoutes {
    /// The servers whose image requests are taken; empty: none.
    pub protocols: Vec<ImageProtocol>,
    /// The path at which BentoML or LitServe takes them.
    pub path: String,
    /// The name of a form's part that holds the image.
    pub part: String,
}

/// A server that takes images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageProtocol {
    /// BentoML.
    #[serde(rename = "bentoml")]
    BentoMl,
    /// `{"b64": ...}` in the `instances` of KServe V1 and TensorFlow Serving.
    KserveV1,
    /// LitServe.
    #[serde(rename = "litserve")]
    LitServe,
    /// A SageMaker container.
    #[serde(rename = "sagemaker")]
    SageMaker,
    /// TorchServe.
    #[serde(rename = "torchserve")]
    TorchServe,
}

// === impl ImageRoutes ===

impl Default for ImageRoutes {
    /// Nobody's requests are taken.
    fn default() -> Self {
        Self { protocols: Vec::new(), path: "/predict".to_owned(), part: "data".to_owned() }
    }
}
