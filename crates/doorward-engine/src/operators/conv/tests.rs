use candle_core::Device;

use super::*;
use crate::composition::Kept;
use crate::kernels::convolution::taps;

/// The compositions that run on an accelerator, checked here where there is none.
#[test]
fn composed_convolutions_equal_the_cpu_ones() {
    let values = |shape: &[usize], step: usize| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i * step % 23) as f32 / 11.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let cases = [
        (1, [1, 1], [1, 1], [0, 0], [0, 0], [1, 1]),
        (1, [3, 3], [1, 1], [1, 1], [1, 1], [1, 1]),
        (2, [3, 3], [2, 2], [1, 1], [1, 1], [1, 1]),
        (2, [5, 3], [2, 2], [0, 2], [2, 1], [1, 1]),
        (1, [3, 3], [1, 1], [2, 2], [2, 2], [2, 2]),
        (2, [3, 2], [2, 3], [1, 0], [2, 1], [1, 1]),
        (1, [3, 3], [2, 2], [2, 1], [0, 3], [1, 2]),
        (2, [2, 3], [3, 1], [0, 1], [1, 0], [3, 2]),
        (4, [3, 2], [1, 2], [1, 0], [2, 1], [2, 1]),
        (4, [1, 1], [3, 3], [0, 0], [0, 0], [1, 1]),
    ];
    for (groups, kernel, stride, pad_begin, pad_end, dilation) in cases {
        let window = Window { kernel, stride, dilation, pad_begin, pad_end };
        // Both with and without several outputs of a group.
        for outs in [groups, 6 * groups] {
            let weight = values(&[outs, 4 / groups, kernel[0], kernel[1]], 7);
            let bias = values(&[outs], 3).to_vec1().unwrap();
            let conv = Conv::new(window.clone(), groups, [4, 9, 8], weight, Some(bias)).unwrap();
            let (x, kept) = (values(&[3, 4, 9, 8], 5), Kept::default());
            let (a, b) = (conv.forward_cpu(&x, 1).unwrap(), conv.composed(&x, &kept).unwrap());
            assert!(largest_difference(&a, &b) < 1e-4, "{window:?}");
            let dy = values(a.dims(), 3);
            let (a, b) =
                (conv.backward_cpu(&dy).unwrap(), conv.composed_gradient(&dy, &kept).unwrap());
            assert!(largest_difference(&a, &b) < 1e-4, "{window:?}");
        }
    }
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Both directions, whichever kernel runs them, on whatever the scratch memory holds.
#[test]
fn convolutions_equal_plain_loops() {
    let mut seed = 1u32;
    let mut next = |end: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) as usize % end
    };
    for case in 0..240 {
        // Every third a 3x3 kernel with many channels (Winograd), every third one group a channel.
        let wide = case % 3 == 0;
        let groups = if case % 3 == 1 { 1 + next(20) } else { 1 };
        let pair = |a: usize, b: usize| [a, b];
        let window = match wide {
            true => Window {
                kernel: [3, 3],
                stride: [1, 1],
                dilation: [1, 1],
                pad_begin: pair(next(3), next(3)),
                pad_end: pair(next(3), next(3)),
            },
            false => Window {
                kernel: pair(1 + next(3), 1 + next(3)),
                stride: pair(1 + next(3), 1 + next(3)),
                dilation: pair(1 + next(2), 1 + next(2)),
                pad_begin: pair(next(4), next(4)),
                pad_end: pair(next(3), next(3)),
            },
        };
        let (ins, outs) = match (wide, groups) {
            (true, _) => (40 + next(40), 40 + next(40)),
            (_, 1) => (1 + next(5), 1 + next(30)),
            _ => (1, 1),
        };
        let (height, width, batch) = (1 + next(12), 1 + next(36), 1 + next(3));
        let [ky, kx] = window.kernel;
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| next(17) as f32 / 8.0 - 1.0).collect()
        };
        let weight = draw(groups * outs * ins * ky * kx);
        let bias = draw(groups * outs);
        let shape = (groups * outs, ins, ky, kx);
        let tensor = Tensor::from_vec(weight.clone(), shape, &Device::Cpu).unwrap();
        let in_shape = [groups * ins, height, width];
        let Some(conv) = Conv::new(window, groups, in_shape, tensor, Some(bias.clone())) else {
            continue;
        };
        let [_, out_height, out_width] = conv.out_shape();
        let x = draw(batch * groups * ins * height * width);
        let dy = draw(batch * groups * outs * out_height * out_width);
        let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
        let w = &conv.shape.window;
        for at_y in 0..y.len() {
            let (rest, ox) = (at_y / out_width, at_y % out_width);
            let (rest, oy) = (rest / out_height, rest % out_height);
            let (image, out) = (rest / (groups * outs), rest % (groups * outs));
            y[at_y] = bias[out];
            for channel in 0..ins {
                for (a, b) in taps(w.kernel).map(|[a, b]| (a, b)) {
                    let row = (oy * w.stride[0] + a * w.dilation[0]).wrapping_sub(w.pad_begin[0]);
                    let column =
                        (ox * w.stride[1] + b * w.dilation[1]).wrapping_sub(w.pad_begin[1]);
                    if row < height && column < width {
                        let from = (image * groups + out / outs) * ins + channel;
                        let at_x = (from * height + row) * width + column;
                        let weight = weight[((out * ins + channel) * ky + a) * kx + b];
                        y[at_y] += weight * x[at_x];
                        dx[at_x] += weight * dy[at_y];
                    }
                }
            }
        }
        let in_shape = (batch, groups * ins, height, width);
        let out_shape = (batch, groups * outs, out_height, out_width);
        let x = Tensor::from_vec(x, in_shape, &Device::Cpu).unwrap();
        let dy = Tensor::from_vec(dy, out_shape, &Device::Cpu).unwrap();
        let y = Tensor::from_vec(y, out_shape, &Device::Cpu).unwrap();
        let dx = Tensor::from_vec(dx, in_shape, &Device::Cpu).unwrap();
        // Sums of up to 720 products of magnitude 1/3, each rounded.
        let difference = largest_difference(&conv.forward_cpu(&x, 1).unwrap(), &y);
        assert!(difference < 2e-4, "case {case}: {difference} with {:?}", conv.shape.window);
        for shares in 2..=4 {
            let shared = conv.forward_cpu(&x.narrow(0, 0, 1).unwrap(), shares).unwrap();
            let difference = largest_difference(&shared, &y.narrow(0, 0, 1).unwrap());
            let window = &conv.shape.window;
            assert!(difference < 2e-4, "case {case}: {difference} in {shares} shares, {window:?}");
        }
        let difference = largest_difference(&conv.backward_cpu(&dy).unwrap(), &dx);
        assert!(
            difference < 2e-4,
            "case {case}: gradient {difference} with {:?}",
            conv.shape.window
        );
    }
}
