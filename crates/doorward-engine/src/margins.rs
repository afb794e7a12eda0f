//! Predicted labels, and the margins by which they are predicted.

use candle_core::{Result as CandleResult, Tensor};

/// The predicted label of one row of logits; the first of equals.
///
/// ```
/// assert_eq!(doorward_engine::label(&[0.5, 2.0, 2.0]), 1);
/// ```
pub fn label(logits: &[f32]) -> usize {
    arg_max(logits, usize::MAX)
}

/// Predicted labels of logits `[n, labels]`.
///
/// Fails if the tensor has another rank.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0.5f32, 2.0], [1.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(doorward_engine::labels(&logits)?, [1, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn labels(logits: &Tensor) -> CandleResult<Vec<usize>> {
    Ok(logits.to_vec2::<f32>()?.iter().map(|row| label(row)).collect())
}

/// The margin of a label, `m_z = f_z - max_{k != z} f_k`: its lead over the best other.
///
/// ```
/// assert_eq!(doorward_engine::margin(&[1.0, 4.0, 2.0], 1), 2.0);
/// ```
pub fn margin(logits: &[f32], label: usize) -> f32 {
    logits[label] - logits[arg_max(logits, label)]
}

/// Margins of the rows of `logits` for `labels`.
///
/// Fails if the tensor is not `[n, labels]`.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0.5f32, 2.0], [1.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(doorward_engine::margins(&logits, &[1, 1])?, [1.5, -1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn margins(logits: &Tensor, labels: &[usize]) -> CandleResult<Vec<f32>> {
    let rows = logits.to_vec2::<f32>()?;
    Ok(rows.iter().zip(labels).map(|(row, &label)| margin(row, label)).collect())
}

/// The gradient of `weight * m_label` with respect to each row of logits.
///
/// `weight` sees the margin, so that a hinge is a weight of zero. Fails if the tensor is not
/// `[n, labels]`.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[1f32, 4.0, 2.0]], &Device::Cpu)?;
/// let cotangent = doorward_engine::margin_cotangent(&logits, &[1], |_| 1.0)?;
/// assert_eq!(cotangent.to_vec2::<f32>()?, [[0.0, 1.0, -1.0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn margin_cotangent(
    logits: &Tensor,
    labels: &[usize],
    weight: impl Fn(f32) -> f32,
) -> CandleResult<Tensor> {
    let rows = logits.to_vec2::<f32>()?;
    let mut cotangent = vec![0.0; logits.elem_count()];
    for ((row, &label), out) in rows.iter().zip(labels).zip(cotangent.chunks_mut(rows[0].len())) {
        let weight = weight(margin(row, label));
        out[label] = weight;
        out[arg_max(row, label)] = -weight;
    }
    Tensor::from_vec(cotangent, logits.shape(), logits.device())
}

/// Index of the largest value but the one at `except`; the first of equals.
fn arg_max(row: &[f32], except: usize) -> usize {
    let mut best = usize::from(except == 0);
    for (index, value) in row.iter().enumerate() {
        if index != except && *value > row[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn margin_is_the_lead_over_the_best_other() {
        assert_eq!(margin(&[1.0, 4.0, 2.0], 1), 2.0);
        assert_eq!(margin(&[1.0, 4.0, 2.0], 0), -3.0);
        assert_eq!(margin(&[4.0, 4.0], 0), 0.0);
    }

    #[test]
    fn margin_cotangent_matches_central_differences() {
        let logits = [0.3f32, -1.2, 2.0, 0.9];
        let tensor = Tensor::new(&[logits], &Device::Cpu).unwrap();
        let cotangent = margin_cotangent(&tensor, &[0], |_| 1.0).unwrap();
        for (k, expected) in cotangent.to_vec2::<f32>().unwrap()[0].iter().enumerate() {
            let (mut up, mut down) = (logits, logits);
            up[k] += 0.01;
            down[k] -= 0.01;
            let slope = (margin(&up, 0) - margin(&down, 0)) / 0.02;
            assert!((slope - expected).abs() < 1e-3);
        }
    }
}
