//! Pictures of what the detector has learned and of what was turned away.
//!
//! A reader who sees the perturbation can train around it, and a quarantined input is somebody's
//! data. So pictures go to a reader on this machine only, which is also what `kubectl
//! port-forward`, an SSH tunnel or `docker exec` are: the connection comes from loopback, and the
//! page was asked for by a loopback name, which a reverse proxy on this machine, or a web page that
//! has its own name point here, would not send.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use axum::http::header::HOST;
use candle_core::{Device, Tensor};

use crate::picture::Painter;
use crate::settings;
use crate::telemetry::audit;
use doorward_detection::artifact::Artifact;
use doorward_engine::{Classifier, InputDomain};

/// Pictures of the detector in effect, as data URIs.
#[derive(Debug)]
pub(super) struct Pictures {
    domain: InputDomain,
    /// The universal perturbation, and how many times it is amplified.
    pub(super) eta: String,
    pub(super) amplified: f32,
    /// Infected labels first, then the most anomalous.
    pub(super) patches: Vec<PatchPictures>,
}

#[derive(Debug)]
pub(super) struct PatchPictures {
    pub(super) label: usize,
    pub(super) infected: bool,
    pub(super) mask: String,
    pub(super) product: String,
}

/// The pictures on one page.
pub(super) struct Shown {
    pub(super) detector: std::sync::Arc<Pictures>,
    /// The newest quarantined inputs; `None` if none are kept.
    pub(super) quarantined: Option<Vec<Quarantined>>,
}

/// A quarantined input.
pub(super) struct Quarantined {
    pub(super) request_id: String,
    pub(super) row: usize,
    pub(super) picture: String,
}

/// Labels whose patch is shown, and quarantined inputs.
const PATCHES: usize = 12;
const INPUTS: usize = 12;

/// Longest side of a picture, pixels: a page of a few hundred kilobytes is read again every half
/// minute.
const SIDE: usize = 96;

/// True if a reader from `peer` may see pictures.
pub(super) fn visible(peer: SocketAddr, headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let loopback = |address: IpAddr| address.to_canonical().is_loopback();
    let local_name = name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(loopback);
    loopback(peer.ip()) && local_name
}

// === impl Pictures ===

impl Pictures {
    pub(super) fn paint(
        model: &dyn Classifier,
        artifact: &Artifact,
    ) -> Result<Self, doorward_engine::Error> {
        let painter = Painter::new(model.domain()).at_most(SIDE);
        let epsilon = artifact.manifest.perturbation.epsilon;
        let found = artifact.manifest.inspection.as_ref();
        let key = |label: usize| {
            let finding = found.and_then(|found| found.labels.iter().find(|l| l.label == label));
            let infected = found.is_some_and(|found| found.infected.contains(&label));
            (infected, finding.map_or(0.0, |finding| finding.anomaly_index))
        };
        let mut labels: Vec<usize> = artifact.patches.keys().copied().collect();
        labels.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal));
        let patches = labels.into_iter().take(PATCHES).map(|label| {
            let patch = &artifact.patches[&label];
            Ok(PatchPictures {
                label,
                infected: key(label).0,
                mask: painter.share(&patch.mask)?,
                product: painter.product(&patch.mask, &patch.pattern)?,
            })
        });
        Ok(Self {
            eta: painter.perturbation(&artifact.universal, epsilon)?,
            amplified: 0.5 / epsilon,
            patches: patches.collect::<Result<_, doorward_engine::Error>>()?,
            domain: model.domain().clone(),
        })
    }

    /// The newest inputs in quarantine. Files that go while they are read, or that another model's
    /// inputs are in, are left out.
    pub(super) fn quarantined(&self, settings: &settings::Quarantine) -> Vec<Quarantined> {
        let [channels, height, width] = self.domain.shape;
        let painter = Painter::new(&self.domain).at_most(SIDE);
        let picture = |values: Vec<f32>| {
            let row = Tensor::from_vec(values, (1, channels, height, width), &Device::Cpu).ok()?;
            painter.row(&row).ok()
        };
        audit::newest_quarantined(settings, INPUTS, self.domain.len())
            .into_iter()
            .filter_map(|kept| {
                let (request_id, row) = (kept.request_id, kept.row);
                Some(Quarantined { request_id, row, picture: picture(kept.values)? })
            })
            .collect()
    }

    /// The pictures of a page: these, and the newest inputs in quarantine.
    pub(super) fn shown(
        self: std::sync::Arc<Self>,
        quarantine: Option<&settings::Quarantine>,
    ) -> Shown {
        let quarantined = quarantine.map(|settings| self.quarantined(settings));
        Shown { detector: self, quarantined }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn pictures_are_for_readers_on_this_machine() {
        let asks = |peer: &str, host: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert(HOST, HeaderValue::from_static(host));
            }
            visible(peer.parse().unwrap(), &headers)
        };
        for host in ["127.0.0.1:9090", "localhost", "LOCALHOST:80", "[::1]:9090", "[::1]"] {
            assert!(asks("127.0.0.1:1", Some(host)) && asks("[::1]:1", Some(host)), "{host}");
            assert!(!asks("10.0.0.1:1", Some(host)), "{host}");
        }
        assert!(asks("[::ffff:127.0.0.1]:1", Some("localhost")));
        for host in ["status.example.org", "10.0.0.1:9090", "", "localhost.example.org", "[::2]"] {
            assert!(!asks("127.0.0.1:1", Some(host)), "{host}");
        }
        assert!(!asks("127.0.0.1:1", None));
    }
}
