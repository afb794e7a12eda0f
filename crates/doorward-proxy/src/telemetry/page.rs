//! The page that Prometheus scrapes, of one model or of several.

use std::collections::BTreeMap;

use prometheus::TextEncoder;
use prometheus::proto::{LabelPair, MetricFamily};

use super::error::Error;
use super::metrics::Metrics;

/// The families that are of the process and not of a model.
const OF_PROCESS: [&str; 6] = [
    "doorward_audit_dropped_total",
    "doorward_build_info",
    "doorward_config_last_reload_successful",
    "doorward_config_reloads_total",
    "doorward_spans_total",
    "process_",
];

/// Names the model where there is only one, and is not needed where every series does.
const MODEL_INFO: &str = "doorward_model_info";

impl Metrics {
    /// The page that Prometheus scrapes, of one model.
    pub fn page(&self) -> Result<String, Error> {
        page(&[(None, self)])
    }
}

/// Several models, with their names: each series gets the label `model`, those of the process
/// aside, which the first one has counted.
pub fn page(models: &[(Option<&str>, &Metrics)]) -> Result<String, Error> {
    if let [(_, metrics)] = models {
        return Ok(TextEncoder::new().encode_to_string(&metrics.gather())?);
    }
    let mut families = BTreeMap::<String, MetricFamily>::new();
    for (number, (name, metrics)) in models.iter().enumerate() {
        for mut family in metrics.gather() {
            let of_process = OF_PROCESS.iter().any(|known| family.name().starts_with(known));
            if family.name() == MODEL_INFO || (of_process && number > 0) {
                continue;
            }
            if !of_process {
                for metric in family.mut_metric() {
                    let mut model = LabelPair::default();
                    model.set_name("model".to_owned());
                    model.set_value(name.unwrap_or_default().to_owned());
                    let mut labels = metric.take_label();
                    labels.push(model);
                    metric.set_label(labels);
                }
            }
            match families.get_mut(family.name()) {
                Some(known) => known.mut_metric().extend(family.take_metric()),
                None => drop(families.insert(family.name().to_owned(), family)),
            }
        }
    }
    Ok(TextEncoder::new().encode_to_string(&families.into_values().collect::<Vec<_>>())?)
}
