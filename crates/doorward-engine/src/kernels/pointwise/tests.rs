use super::*;
use crate::kernels::load::{Affine, Plain};

#[test]
fn sums_equal_plain_loops() {
    let value = |i: usize, j: usize| ((i * 7 + j * 3) % 11) as f32 - 5.0;
    for (ins, outs, size, stride, images) in [
        (3, 5, [1, 2], [1, 1], 1),
        (16, 48, [7, 7], [1, 1], 1),
        (9, 50, [2, 2], [1, 1], 33),
        (9, 8, [4, 4], [1, 1], 5),
        (40, 100, [14, 14], [1, 1], 2),
        (6, 17, [5, 7], [2, 2], 3),
        (6, 17, [8, 13], [2, 3], 4),
        (600, 9, [17, 19], [1, 1], 3),
    ] {
        let small = [0, 1].map(|axis| (size[axis] - 1) / stride[axis] + 1);
        let (plane, count) = (size[0] * size[1], small[0] * small[1]);
        let corner = |p: usize| p / small[1] * stride[0] * size[1] + p % small[1] * stride[1];
        let bias: Vec<f32> = (0..outs).map(|o| o as f32 / 2.0 - 3.0).collect();
        let case = format!("{ins} {outs} {size:?} {stride:?} {images}");

        let plan = Pointwise::forward([ins, outs], [size, small], stride, value);
        let x: Vec<f32> = (0..images * ins * plane).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
        let mut out = vec![f32::NAN; images * outs * count];
        let load = Affine {
            scale: &vec![2.0; ins],
            shift: &vec![1.0; ins],
            activation: Activation::Identity,
        };
        let clip = Activation::Clip { low: -40.0, high: 60.0 };
        plan.run(&x, load, Some(&bias), clip, 0, &mut out);
        for (at, got) in out.iter().enumerate() {
            let (image, o, p) = (at / (outs * count), at / count % outs, at % count);
            let x = |c: usize| 2.0 * x[(image * ins + c) * plane + corner(p)] + 1.0;
            let sum: f32 = (0..ins).map(|c| x(c) * value(c, o)).sum();
            assert_eq!(*got, (sum + bias[o]).clamp(-40.0, 60.0), "{case}");
        }

        let plan = Pointwise::backward([ins, outs], [size, small], stride, value);
        let y: Vec<f32> = (0..images * ins * count).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
        let mut out = vec![f32::NAN; images * outs * plane];
        plan.run(&y, Plain, None, Activation::Identity, 0, &mut out);
        let mut expected = vec![0.0; out.len()];
        for image in 0..images {
            for (o, p) in (0..outs).flat_map(|o| (0..count).map(move |p| (o, p))) {
                let y = |c: usize| y[(image * ins + c) * count + p];
                expected[(image * outs + o) * plane + corner(p)] =
                    (0..ins).map(|c| y(c) * value(c, o)).sum();
            }
        }
        assert_eq!(out, expected, "{case}");
    }
}
