//! Every operator's composition against its loops, on the CPU.

use candle_core::{Device, Tensor};

use super::*;
use crate::kernels::activation::Activation;
use crate::kernels::affine::ChannelAffine;
use crate::kernels::window::Window;
use crate::operators::binary::{Arithmetic, Binary, Term};
use crate::operators::choose::Choose;
use crate::operators::conv::Conv;
use crate::operators::dynamic::{Dynamic, Part};
use crate::operators::einsum::Einsum;
use crate::operators::folded::Folded;
use crate::operators::linear::Linear;
use crate::operators::lrn::LocalResponse;
use crate::operators::matmul::MatMul;
use crate::operators::norm::{Normalization, Softmax};
use crate::operators::pool::{Kind, Pool};
use crate::operators::prelu::PRelu;
use crate::operators::reduce::{Reduce, Reduction};
use crate::operators::resample::Resample;
use crate::operators::select::{Gather, View};
use crate::operators::shape::{Concat, Pad, Reshape, Transpose};
use crate::operators::unary::Unary;
use crate::step::{Mode, Step};

const CLIP: Activation = Activation::Clip { low: -0.5, high: 1.0 };

/// Quarters between -3 and 3: many are equal, and zeros and bounds are among them.
fn values(shape: &[usize], step: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| ((i * step + i / 7) % 25) as f32 / 4.0 - 3.0).collect();
    Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu).unwrap()
}

/// Both directions at these inputs, and again with what was kept the first time.
fn check(operator: impl Operator + 'static, inputs: &[Tensor]) {
    check_boxed(Box::new(operator), inputs);
}

fn check_boxed(operator: Box<dyn Operator>, inputs: &[Tensor]) {
    let what = format!("{operator:?}");
    let step = Step::new("", operator, vec![0], 1);
    let output = step.forward(inputs, 1, Mode::Loops).unwrap();
    let cotangent = values(output.dims(), 3);
    let at = Backward { inputs, output: &output, cotangent: &cotangent };
    let gradients = step.vjp(&at, Mode::Loops).unwrap();
    for _ in 0..2 {
        compare(&step.forward(inputs, 1, Mode::Composed).unwrap(), &output, &what);
        let others = step.vjp(&at, Mode::Composed).unwrap();
        assert_eq!(others.len(), gradients.len(), "{what}");
        for (other, gradient) in others.iter().zip(&gradients) {
            let (other, gradient) = (other.as_ref().unwrap(), gradient.as_ref().unwrap());
            let other = other.reshape(gradient.shape()).unwrap();
            compare(&other, gradient, &format!("gradient of {what}"));
        }
    }
}

fn compare(got: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, expected) = (flat(got), flat(expected));
    let finite = expected.iter().filter(|value| value.is_finite());
    let scale = finite.fold(1f32, |max, value| max.max(value.abs()));
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        let same = a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-5 * scale;
        assert!(same, "{what}: {a} instead of {b} at {i}");
    }
}

#[test]
fn functions_of_one_value() {
    use Unary::*;
    let (alpha, beta, gamma) = (0.5, 0.25, 1.5);
    let functions = [
        Abs,
        Ceil,
        Celu { alpha },
        Clip { low: -1.0, high: 2.0 },
        Elu { alpha },
        Erf,
        Exp,
        Floor,
        Gelu,
        GeluTanh,
        HardSigmoid { alpha, beta },
        HardSwish,
        LeakyRelu { slope: 0.1 },
        Log,
        Mish,
        Neg,
        Power { exponent: 1.5 },
        Power { exponent: 3.0 },
        Power { exponent: -2.0 },
        Reciprocal,
        Round,
        RoundedSteps { scale: 0.3 },
        Selu { alpha, gamma },
        Sigmoid,
        Sign,
        Silu,
        Softplus,
        Softsign,
        Sqrt,
        Square,
        Tanh,
        ThresholdedRelu { alpha },
    ];
    for function in functions {
        check(function, &[values(&[2, 3, 7], 1)]);
    }
}

#[test]
fn functions_of_two_values() {
    use Arithmetic::*;
    for function in [Add, Div, Equal, Greater, GreaterOrEqual, Max, Min, Mul, Pow, Sub] {
        for activation in [Activation::Identity, Activation::Relu, CLIP] {
            if function == Pow && activation != Activation::Identity {
                // Infinities, of which the loops take no gradient behind a ReLU.
                continue;
            }
            // For the same reason there is no division by zero.
            let apart = if function == Div { 0.125 } else { 0.0 };
            let right = |shape: &[usize], step| (values(shape, step) + apart).unwrap();
            let check_terms = |left: &Term, right: &Term, inputs: &[Tensor]| {
                let (left, right, row) = (left.clone(), right.clone(), vec![5, 4]);
                check(Binary { function, left, right, row, activation }, inputs);
            };
            let whole = Term::Input(vec![5, 4]);
            let x = right(&[5, 5, 4], 2);
            check_terms(&whole, &whole, &[values(&[5, 5, 4], 1), right(&[5, 5, 4], 6)]);
            check_terms(&whole, &Term::Constant(right(&[1, 1, 4], 7)), std::slice::from_ref(&x));
            check_terms(&Term::Constant(values(&[1, 5, 1], 7)), &whole, &[x]);
            let (column, row) = (Term::Input(vec![5, 1]), Term::Input(vec![1, 4]));
            check_terms(&column, &row, &[values(&[3, 5], 2), right(&[3, 4], 9)]);
        }
    }
    check(PRelu::new(values(&[1, 3, 1], 4), vec![3, 5]), &[values(&[2, 3, 5], 2)]);
}

#[test]
fn choices_and_ranges() {
    let condition = values(&[1, 1, 4], 3).gt(0f32).unwrap();
    let condition = condition.to_dtype(candle_core::DType::F32).unwrap();
    let (row, whole) = (vec![5, 4], Term::Input(vec![5, 4]));
    let low = Term::Constant(Tensor::full(f32::NEG_INFINITY, (1, 1, 1), &Device::Cpu).unwrap());
    let terms = [Term::Constant(condition.clone()), whole.clone(), low];
    check(Choose { terms, row: row.clone() }, &[values(&[3, 5, 4], 2)]);
    let conditions = condition.broadcast_as((3, 1, 4)).unwrap().contiguous().unwrap();
    let terms = [Term::Input(vec![1, 4]), whole, Term::Input(vec![5, 1])];
    let inputs = [conditions, values(&[3, 5, 4], 2), values(&[3, 5], 7)];
    check(Choose { terms, row }, &inputs);
    for part in [Part::Scale, Part::Values, Part::ZeroPoint] {
        check(Dynamic { part }, &[values(&[3, 5, 4], 2)]);
    }
}

#[test]
fn channel_affines() {
    for activation in [Activation::Identity, Activation::Relu, CLIP] {
        let (scale, shift) = (vec![2.0, -1.0, 0.5], vec![0.25, -0.5, 0.0]);
        check(ChannelAffine { scale, shift, activation }, &[values(&[2, 3, 4, 5], 2)]);
        check(ChannelAffine::unit(3, activation), &[values(&[4, 3], 2)]);
    }
}

#[test]
fn reductions_and_normalisations() {
    use Reduction::*;
    for kind in [L1, L2, LogSumExp, Max, Mean, Min, Sum, SumSquare] {
        for (len, inner, row) in [(6, 1, vec![4]), (4, 6, vec![1, 6]), (4, 2, vec![3, 2])] {
            let reduce = Reduce { kind, len, inner, row, in_row: vec![4, 6] };
            check(reduce, &[values(&[3, 4, 6], 5)]);
        }
        let ties = Tensor::ones((2, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
        check(Reduce { kind, len: 6, inner: 1, row: vec![1], in_row: vec![6] }, &[ties]);
    }
    for log in [false, true] {
        for (len, inner) in [(6, 1), (4, 6), (24, 1)] {
            check(Softmax { log, len, inner }, &[values(&[3, 4, 6], 5)]);
        }
    }
    for (len, repeat, parameters) in [(6, 1, 6), (6, 6, 4), (12, 6, 4), (24, 1, 24), (24, 6, 4)] {
        let vector = |step| values(&[parameters], step).to_vec1().unwrap();
        let (scale, bias) = (vector(3), vector(4));
        let name = "LayerNormalization";
        let norm = Normalization { name, len, epsilon: 1e-3, scale, bias, repeat };
        check(norm, &[values(&[3, 4, 6], 5)]);
    }
    for size in [1, 2, 3, 7] {
        let (alpha, beta, bias) = (0.5, 0.75, 1.5);
        let operator = LocalResponse { alpha, beta, bias, size, channels: 5, plane: 6 };
        check(operator, &[values(&[3, 5, 2, 3], 5)]);
    }
}

#[test]
fn movements() {
    let x = || values(&[2, 3, 4, 5], 1);
    check(Reshape { rows: [vec![3, 4, 5], vec![60]] }, &[x()]);
    check(Transpose { order: vec![0, 3, 1, 2] }, &[x()]);
    let dims = vec![(1, -1, 2), (3, 2, 0), (2, 0, -2)];
    check(Pad { dims, value: 0.5 }, &[x()]);
    let parts = vec![None, Some(values(&[1, 3, 2, 5], 2)), None];
    check(Concat { dim: 2, parts, sizes: vec![4, 2, 4] }, &[x(), values(&[2, 3, 4, 5], 2)]);
    for (offset, dims) in [
        // Every second column from the last, of two rows; one channel repeated; all of it.
        (4, vec![(3, 20), (2, 5), (3, -2)]),
        (20, vec![(2, 0), (4, 5), (5, 1)]),
        (0, vec![(3, 20), (1, 5), (3, 0), (2, 1)]),
        (0, vec![(60, 1)]),
    ] {
        check(View { name: "Slice", in_row: vec![3, 4, 5], offset, dims }, &[x()]);
    }
    let gather = Gather {
        indices: vec![3, 0, 0, 2, 3, 3],
        size: 4,
        inner: 5,
        rows: [vec![3, 4, 5], vec![3, 6, 5]],
    };
    check(gather, &[x()]);
    let taps = vec![vec![(0, 1.0)], vec![(0, 0.25), (1, 0.75)], vec![(3, 0.5), (3, 0.5)]];
    let rows = [vec![3, 4, 5], vec![3, 3, 5]];
    check(Resample { taps, size: 4, inner: 5, rows }, &[x()]);
}

#[test]
fn products() {
    for activation in [Activation::Identity, Activation::Relu, CLIP] {
        let bias = values(&[6], 2);
        let linear = Linear::new(values(&[5, 6], 4), Some(bias));
        let fused =
            linear.followed_by(&Fusible::Affine(&ChannelAffine::unit(6, activation))).unwrap();
        check_boxed(fused, &[values(&[2, 3, 5], 1)]);
    }
    let input = |row: &[usize]| Term::Input(row.to_vec());
    let matmul = MatMul { left: input(&[3, 2, 4]), right: input(&[1, 4, 5]), row: vec![3, 2, 5] };
    check(matmul, &[values(&[2, 3, 2, 4], 1), values(&[2, 1, 4, 5], 2)]);
    let right = Term::Constant(values(&[1, 3, 4, 5], 3));
    check(
        MatMul { left: input(&[1, 2, 4]), right, row: vec![3, 2, 5] },
        &[values(&[2, 1, 2, 4], 1)],
    );
    // bik,bjk->bji with a varying, then a constant operand.
    for right in [input(&[4, 5]), Term::Constant(values(&[1, 4, 5], 3))] {
        let mut inputs = vec![values(&[2, 3, 5], 1)];
        if matches!(right, Term::Input(_)) {
            inputs.push(values(&[2, 4, 5], 2));
        }
        let einsum = Einsum {
            left: input(&[3, 5]),
            right,
            orders: [vec![0, 1, 2], vec![0, 2, 1], vec![0, 2, 1]],
            sizes: [3, 5, 4],
            rows: [vec![3, 5], vec![5, 4], vec![3, 4]],
        };
        check(einsum, &inputs);
    }
}

#[test]
fn windows() {
    let kinds =
        [Kind::Max, Kind::Average { count_padding: false }, Kind::Average { count_padding: true }];
    for kind in kinds {
        for (kernel, stride, dilation, pad_begin, pad_end, ceil) in [
            ([2, 2], [2, 2], [1, 1], [0, 0], [0, 0], false),
            ([3, 3], [2, 2], [1, 1], [1, 1], [1, 1], true),
            ([3, 2], [1, 3], [2, 1], [2, 0], [1, 1], false),
            ([9, 8], [1, 1], [1, 1], [0, 0], [0, 0], false),
        ] {
            let window = Window { kernel, stride, dilation, pad_begin, pad_end };
            let pool = |size| Pool::new(kind, window.clone(), size, ceil).unwrap();
            check(pool([9, 8]), &[values(&[2, 3, 9, 8], 1)]);
            let ties = values(&[2, 3, 9, 8], 1).ge(0f32).unwrap();
            check(pool([9, 8]), &[ties.to_dtype(candle_core::DType::F32).unwrap()]);
        }
    }
    let window = Window {
        kernel: [3, 2],
        stride: [2, 1],
        dilation: [1, 2],
        pad_begin: [1, 0],
        pad_end: [0, 1],
    };
    let bias = Some(vec![0.5, -0.5, 1.0, 0.0]);
    let conv = Conv::new(window, 2, [6, 7, 8], values(&[4, 3, 3, 2], 3), bias).unwrap();
    for activation in [Activation::Identity, Activation::Relu, CLIP] {
        let before = ChannelAffine { scale: vec![0.5; 6], shift: vec![0.25; 6], activation };
        let fused = conv.preceded_by(&before).unwrap();
        let fused =
            fused.followed_by(&Fusible::Affine(&ChannelAffine::unit(4, activation))).unwrap();
        let [channels, height, width] = conv.out_shape();
        let row = vec![3, channels, height, width];
        let images = [[6, 7, 8], conv.out_shape()];
        check(Folded { operator: fused, images, row }, &[values(&[2, 3, 6, 7, 8], 1)]);
    }
}
