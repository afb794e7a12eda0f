//! Order statistics and the anomaly index.
