//! ONNX files made by the tests, and whether this build can load them.

pub(crate) mod onnx;

/// Says so and is true where this build wants an onnxruntime that is not there: tests skip then.
pub(crate) fn models_cannot_be_loaded() -> bool {
    #[cfg(feature = "ort")]
    {
        use candle_core::Device;
        use doorward_engine::{Error, Model};
        let model = onnx::Graph::new(&[1, 1, 2]).node("Flatten", &["x"], "y", vec![]).encode();
        let model = Model::decode(&model, &[0.0], &[1.0], &Device::Cpu);
        if let Err(Error::Onnxruntime { reason }) = &model {
            println!("skipped: {reason}");
        }
        model.is_err()
    }
    #[cfg(not(feature = "ort"))]
    false
}
