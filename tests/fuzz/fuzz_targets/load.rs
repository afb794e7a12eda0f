//! Any bytes compile or give an error, and what compiles runs: `tests/fuzz/run.sh` runs it.

#![no_main]

use candle_core::{DType, Device, Tensor};
use doorward_engine::Program;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(program) = Program::compile(bytes, &Device::Cpu) else { return };
    if program.input_shape().iter().product::<usize>() > MAX_INPUT {
        return;
    }
    let shape = [&[1], program.input_shape()].concat();
    let rows = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a small tensor");
    // Values may be anything, their number may not.
    if let Ok(output) = program.forward(&rows) {
        assert_eq!(output.dims()[1..], *program.output_shape());
        if let Ok((_, gradient)) = program.vjp(&rows, &|_, logits| logits.ones_like()) {
            assert_eq!(gradient.dims(), rows.dims());
        }
    }
});

/// Values of a row that is worth the time.
const MAX_INPUT: usize = 1 << 12;
