//! Small symmetric matrices, row-major.

/// The inverse of the lower triangular `L` of `a = L L'`, `[n, n]`; `a` is positive definite.
///
/// `L^-1 x` of vectors `x` with the covariance `a` has the covariance one. Values are NaN where `a`
/// is not positive definite.
pub(crate) fn whitening(a: &[f64], n: usize) -> Vec<f64> {
    let mut lower = vec![0.0; n * n];
    for row in 0..n {
        for column in 0..=row {
            let known: f64 = (0..column).map(|k| lower[row * n + k] * lower[column * n + k]).sum();
            let rest = a[row * n + column] - known;
            lower[row * n + column] =
                if row == column { rest.sqrt() } else { rest / lower[column * n + column] };
        }
    }
    let mut inverse = vec![0.0; n * n];
    for column in 0..n {
        inverse[column * n + column] = 1.0 / lower[column * n + column];
        for row in column + 1..n {
            let known: f64 =
                (column..row).map(|k| lower[row * n + k] * inverse[k * n + column]).sum();
            inverse[row * n + column] = -known / lower[row * n + row];
        }
    }
    inverse
}

/// The inverse of a positive definite matrix `[n, n]`.
pub(crate) fn inverse(a: &[f64], n: usize) -> Vec<f64> {
    let whitening = whitening(a, n);
    let mut inverse = vec![0.0; n * n];
    for row in 0..n {
        for column in 0..n {
            inverse[row * n + column] =
                (0..n).map(|k| whitening[k * n + row] * whitening[k * n + column]).sum();
        }
    }
    inverse
}

/// `(1 - share) a + share diag(a) + floor * mean(diag(a)) I`, in place.
#[cfg(any(test, feature = "prepare"))]
pub(crate) fn shrink(a: &mut [f64], n: usize, share: f64, floor: f64) {
    let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
    for row in 0..n {
        for column in 0..n {
            let value = &mut a[row * n + column];
            if row == column {
                *value += floor * trace / n as f64;
            } else {
                *value *= 1.0 - share;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 9] = [4.0, 1.0, 0.5, 1.0, 3.0, -1.0, 0.5, -1.0, 2.0];

    fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
        let n = 3;
        let at = |row: usize, column: usize| {
            (0..n).map(|k| a[row * n + k] * b[k * n + column]).sum::<f64>()
        };
        (0..n * n).map(|i| at(i / n, i % n)).collect()
    }

    fn is_one(a: &[f64]) -> bool {
        let one = |i: usize| f64::from(u8::from(i.is_multiple_of(4)));
        a.iter().enumerate().all(|(i, value)| (value - one(i)).abs() < 1e-12)
    }

    #[test]
    fn a_matrix_times_its_inverse_is_one() {
        assert!(is_one(&product(&A, &inverse(&A, 3))));
    }

    #[test]
    fn whitened_covariance_is_one() {
        let white = whitening(&A, 3);
        let transposed: Vec<f64> = (0..9).map(|i| white[i % 3 * 3 + i / 3]).collect();
        assert!(is_one(&product(&product(&white, &A), &transposed)));
    }

    #[test]
    fn what_is_not_positive_definite_has_no_inverse() {
        assert!(inverse(&[1.0, 2.0, 2.0, 1.0], 2).iter().any(|value| value.is_nan()));
    }

    #[test]
    fn shrinking_keeps_the_variances() {
        let mut a = A;
        shrink(&mut a, 3, 0.5, 0.0);
        assert_eq!(a, [4.0, 0.5, 0.25, 0.5, 3.0, -0.5, 0.25, -0.5, 2.0]);
    }
}
