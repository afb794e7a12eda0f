//! Elementary functions as straight lines of arithmetic, so that loops over them vectorise.
//!
//! The standard library's call into libm for every value. Accuracies are those of the tests below.

/// `e^x` after Cephes' `expf`; saturates where `f32` ends.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.336_54, 88.722_83);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, as the rational approximation that Eigen uses.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let z = x * x;
    let mut p = -2.726_142e-10;
    p = p * z + 2.770_681_4e-8;
    p = p * z - 2.101_024e-6;
    p = p * z - 5.692_506_4e-5;
    p = p * z - 7.349_906_4e-4;
    p = p * z - 2.954_6e-3;
    p = p * z - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * z - 2.133_740_6e-4;
    q = q * z - 1.682_827e-3;
    q = q * z - 7.373_329_2e-3;
    q = q * z - 1.426_473_9e-2;
    x * p / q
}

/// Hyperbolic tangent, as the rational approximation that Eigen uses.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let clamped = x.clamp(-7.905_311, 7.905_311);
    let z = clamped * clamped;
    let mut p = -2.760_768_5e-16;
    p = p * z + 2.000_188e-13;
    p = p * z - 8.604_672e-11;
    p = p * z + 5.122_297e-8;
    p = p * z + 1.485_722_3e-5;
    p = p * z + 6.372_619_3e-4;
    p = p * z + 4.893_524_6e-3;
    let mut q = 1.198_258_4e-6;
    q = q * z + 1.185_347_1e-4;
    q = q * z + 2.268_434_6e-3;
    q = q * z + 4.893_525e-3;
    if x.abs() < 4e-4 { x } else { clamped * p / q }
}

#[cfg(test)]
mod tests {
    /// Largest error over `[-30, 30]`, relative to the value or to `floor` where it is smaller.
    fn worst(f: fn(f32) -> f32, expected: fn(f64) -> f64, floor: f64) -> f64 {
        (-300_000..=300_000)
            .map(|i| i as f32 * 1e-4)
            .map(|x| {
                let expected = expected(f64::from(x));
                (f64::from(f(x)) - expected).abs() / expected.abs().max(floor)
            })
            .fold(0.0, f64::max)
    }

    /// The error function by its series, or by its continued fraction where that converges faster.
    fn erf(x: f64) -> f64 {
        let a = x.abs();
        if a > 3.0 {
            let fraction = (1..60).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
            return x.signum() * (1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / fraction);
        }
        let mut term = x;
        let mut sum = x;
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn the_functions_are_accurate_to_a_few_units_in_the_last_place() {
        assert!(worst(super::exp, f64::exp, 1e-30) < 3e-7);
        assert!(worst(super::tanh, f64::tanh, 1e-30) < 5e-7);
        assert!(worst(super::erf, erf, 1e-30) < 5e-7);
        assert!(worst(super::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 1e-30) < 5e-7);
    }

    #[test]
    fn the_functions_saturate_and_pass_not_a_number_on() {
        assert_eq!(super::exp(-1e30), super::exp(-88.0));
        assert!(super::exp(1e30) > 3e38);
        assert_eq!(super::erf(1e30), super::erf(4.0));
        assert_eq!((super::tanh(f32::INFINITY) * 1e6).round(), 1e6);
        for f in [super::exp, super::erf, super::tanh, super::sigmoid] {
            assert!(f(f32::NAN).is_nan());
        }
    }
}
