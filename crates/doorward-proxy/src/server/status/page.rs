//! The page's template. It loads nothing and runs no script, and looks like an inspection's report.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{bars, words};
use super::figures::{LabelStatus, RejectionStatus, Status, TrafficStatus};
use super::numbers::{Counts, thousands};
use crate::server::pictures::{PatchPictures, Quarantined, Shown};

/// Renders `status`; without `pictures` the page says how to get at them.
pub(in crate::server) fn page(status: &Status, pictures: Option<&Shown>) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (crate::page::head(status.phase))
                meta http-equiv="refresh" content=(REFRESH_SECONDS);
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (heading(status))
                    (tiles(status))
                    section {
                        h2 { "Requests" }
                        (bars(status))
                        (numbers(status))
                        (unjudged(status))
                    }
                    (guarantee(status))
                    (rejections(&status.rejections, pictures))
                    (labels(&status.labels))
                    @if !status.labels.is_empty() { (learned(pictures)) }
                    (facts(status))
                }
            }
        }
    };
    markup.into_string()
}

fn heading(status: &Status) -> Markup {
    let model = status.model.name.as_deref().unwrap_or("any model name");
    let TrafficStatus { received, judged, .. } = status.traffic;
    let nothing_judged = format!(
        "0 of {} requests judged: no input was looked at, so nothing is protected.",
        thousands(received)
    );
    let (class, says) = match (status.phase, status.policy.mode) {
        ("ready", _) if received > 0 && judged == 0 => ("watch", nothing_judged.as_str()),
        ("ready", "enforce") => ("", "Inputs that carry a trigger are turned away."),
        ("ready", _) => ("watch", "Nothing is turned away: what enforce would reject is counted."),
        ("draining", _) => ("watch", "The process is shutting down."),
        _ => (
            "watch",
            "There is no detector yet: requests have the verdict of policy.unverified.artifact.",
        ),
    };
    html! {
        header class={ "verdict " (class) } {
            p .name { "Doorward in front of " b { (model) } }
            h1 { (status.phase) ", mode " (status.policy.mode) }
            p { (says) }
            @if !status.models.is_empty() {
                p { "Models: " @for name in &status.models { a href={ "/status/" (name) } { (name) } " " } }
            }
        }
    }
}

fn tiles(status: &Status) -> Markup {
    let count = |verdict: &str| status.verdicts.get(verdict).copied().unwrap_or(0);
    let turned_away = count("rejected") + count("flagged");
    let judged = turned_away + count("passed");
    let unverified = count("unverified_passed") + count("unverified_rejected");
    let share = |part: u64| match judged {
        0 => "none judged yet".to_owned(),
        _ => format!("{} of {} judged", percent(part as f64 / judged as f64), thousands(judged)),
    };
    html! {
        div .tiles {
            (tile("Requests", &thousands(status.verdicts.values().sum()), "since the start", false))
            (tile("Turned away", &thousands(turned_away), &share(turned_away), false))
            (tile("Without a verdict", &thousands(unverified), &format!("{} of them passed", thousands(count("unverified_passed"))), count("unverified_passed") > 0))
            @match status.score_drift {
                Some(distance) => (tile("Score drift", &format!("{distance:.3}"), &format!("inputs like the held-out ones: below {:.3}", limit(status)), drifted(status))),
                None => (tile("Score drift", "–", "needs 100 scores", false)),
            }
        }
    }
}

fn tile(name: &str, figure: &str, says: &str, alarm: bool) -> Markup {
    html! {
        div .tile .alarm[alarm] { p .name { (name) } p .figure { (figure) } p { (says) } }
    }
}

/// The same as the chart, in figures.
fn numbers(status: &Status) -> Markup {
    let header = html! { @for verdict in status.verdicts.keys() { th { (words(verdict)) } } };
    let cells = |counts: &Counts| {
        html! {
            @for verdict in status.verdicts.keys() {
                td { (thousands(counts.get(verdict).copied().unwrap_or(0))) }
            }
        }
    };
    html! {
        div .wide {
            table {
                thead { tr { th {} (header) } }
                tbody { tr { th scope="row" { "since the start" } (cells(&status.verdicts)) } }
            }
        }
        details {
            summary { "By minute" }
            div .wide {
                table {
                    thead { tr { th { "until" } (header) } }
                    tbody {
                        tr { th scope="row" { "now" } (cells(&status.minute_so_far)) }
                        @for minute in status.minutes.iter().rev() {
                            tr { th scope="row" { (minute.end) } (cells(&minute.verdicts)) }
                        }
                    }
                }
            }
        }
    }
}

/// The requests that nobody judged, and the settings that would help.
fn unjudged(status: &Status) -> Markup {
    let traffic = &status.traffic;
    let share = traffic.enforce_would_refuse as f64 / traffic.received.max(1) as f64;
    let reasons = traffic.unverified.iter().filter(|(_, count)| **count > 0);
    html! {
        @if status.policy.mode == "monitor" && traffic.enforce_would_refuse > 0 {
            p { "Mode enforce would have turned away " (percent(share)) " of " (thousands(traffic.received)) " requests." }
        }
        @for (reason, count) in reasons {
            p { (thousands(*count)) " without a verdict: " (words(reason)) ". " (advice(reason)) }
        }
        @if !traffic.unrecognised.is_empty() {
            table {
                thead { tr { th { "not recognised" } th { "requests" } } }
                tbody {
                    @for path in &traffic.unrecognised {
                        tr { th scope="row" { code { (path.request) } } td { (thousands(path.count)) } }
                    }
                }
            }
            p { (advice("unrecognised")) }
        }
    }
}

/// The setting that would help against a reason.
fn advice(reason: &str) -> &'static str {
    match reason {
        "range" => "A larger preprocess.range_slack has such values judged.",
        "unrecognised" => {
            "Images sent as they are: images.protocols and images.path. Reads: listen.reads. Another model: model.name, or [[models]]."
        }
        "artifact" => "doorward calibrate makes the artifact before the start.",
        "deadline" | "overload" => "See [limits].",
        _ => "The log says why, request by request.",
    }
}

/// The guarantee that clean inputs pass.
fn guarantee(status: &Status) -> Markup {
    let policy = &status.policy;
    let pooled = status.labels.iter().filter(|label| label.pooled).count();
    html! {
        section {
            h2 { "How sure the guarantee is" }
            @match (policy.false_rejection_rate_bound, &status.artifact) {
                (Some(bound), Some(artifact)) => {
                    p {
                        "At most " b { (percent(bound)) } " of inputs like the " (thousands(artifact.held_out_images as u64))
                        " held-out images are turned away; the budget is " (percent(policy.max_false_rejection_rate)) "."
                        @if pooled > 0 {
                            " " (pooled) " of " (status.labels.len()) " labels share a threshold, for want of held-out images: "
                            "the rate of one of them may differ."
                        }
                    }
                    @match status.score_drift {
                        None => p { "Whether live inputs are like them is not known yet: fewer than 100 scores so far." },
                        Some(distance) => {
                            p .doubt[drifted(status)] {
                                @if drifted(status) {
                                    "In doubt: the scores of the last 1,000 rows are not distributed like theirs. Other images, another mix "
                                    "of labels, and an attack all do that."
                                } @else {
                                    "The scores of the last 1,000 rows are distributed like theirs."
                                }
                                (format!(" The distance is {distance:.3}; of inputs like them it is below {:.3} with probability 0.99.", limit(status)))
                            }
                        }
                    }
                }
                (None, Some(_)) => p { "The rule " b { (policy.rule) } " keeps no budget: only the rule calibrated does." },
                _ => p { "There is none yet." },
            }
            p .legend {
                "It says nothing of inputs unlike the held-out images, nor of how many triggers are found: "
                "some kinds of attack get past the detection."
            }
        }
    }
}

fn rejections(rejections: &[RejectionStatus], pictures: Option<&Shown>) -> Markup {
    let quarantined = pictures.and_then(|shown| shown.quarantined.as_deref());
    html! {
        section {
            h2 { "Turned away last" }
            @if rejections.is_empty() {
                p { "Nothing since the start." }
            } @else {
                div .wide {
                    table {
                        thead { tr { th .verdict { "Time" } th .verdict { "Predicted" } th { "Rows" } th .verdict { "Verdict" } th .verdict { "Request" } } }
                        tbody {
                            @for rejection in rejections {
                                tr {
                                    td .verdict { (rejection.time) }
                                    td .verdict { (predicted(rejection)) }
                                    td { (rejection.labels.values().sum::<usize>()) " of " (rejection.rows) }
                                    td .verdict { (rejection.verdict) " · " (rejection.protocol) }
                                    td .verdict { code { (rejection.request_id) } }
                                }
                            }
                        }
                    }
                }
            }
            @match quarantined {
                Some([]) => p .legend { "The quarantine is empty." },
                Some(inputs) => {
                    h4 { "In quarantine" }
                    div .inputs { @for input in inputs { (quarantined_input(input)) } }
                }
                None => {}
            }
        }
    }
}

fn predicted(rejection: &RejectionStatus) -> String {
    let one = |(label, rows): (&usize, &usize)| match rows {
        1 => format!("label {label}"),
        _ => format!("label {label} ({rows} rows)"),
    };
    rejection.labels.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn quarantined_input(input: &Quarantined) -> Markup {
    html! {
        figure {
            img .pixelated src=(input.picture) alt={ "Row " (input.row) " of request " (input.request_id) };
            figcaption title=(input.request_id) { code { (input.request_id) } " row " (input.row) }
        }
    }
}

fn labels(labels: &[LabelStatus]) -> Markup {
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.2}"));
    let inspected = labels.iter().any(|label| label.infected.is_some());
    html! {
        section {
            h2 { "Labels" }
            @if labels.is_empty() {
                p { "There is no detector yet." }
            } @else {
                p {
                    @if inspected {
                        "An infected label has a low transfer ratio and a high anomaly index, or far more training images than "
                        "clean ones that survive the perturbations, or training images that the model represents unlike clean ones. It gets more of the budget; no label is exempt."
                    } @else {
                        "The model was not inspected: there are no training images. All labels are treated alike."
                    }
                }
                div .wide {
                    table {
                        thead {
                            tr {
                                th { "Label" } th .verdict { "Inspection" } th { "Transfer ratio" } th { "Anomaly index" }
                                th { "Held-out images" } th { "Rows turned away" }
                            }
                        }
                        tbody {
                            @for label in labels {
                                tr .infected[label.infected == Some(true)] {
                                    td { (label.label) }
                                    td .verdict { (match label.infected { Some(true) => "infected", Some(false) => "clean", None => "–" }) }
                                    td { (number(label.transfer_ratio)) }
                                    td { (number(label.anomaly_index)) }
                                    td { (thousands(label.held_out_images as u64)) @if label.pooled { " (pooled)" } }
                                    td { (thousands(label.rejected_rows)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The perturbation and the patches.
fn learned(pictures: Option<&Shown>) -> Markup {
    let Some(shown) = pictures else {
        return html! {
            section {
                h2 { "Perturbation and patches" }
                p {
                    "Pictures give the perturbation away, and go to a reader on the sidecar's own machine only: through "
                    code { "kubectl port-forward" } " or an SSH tunnel this page has them."
                }
            }
        };
    };
    let pictures = &shown.detector;
    html! {
        section {
            h2 { "Perturbation and patches" }
            div .columns.uneven {
                figure .large {
                    img .pixelated src=(pictures.eta) alt="The universal perturbation";
                    figcaption { "Universal perturbation, amplified " (format!("{:.0}", pictures.amplified)) " times; grey is no change" }
                }
                div {
                    p {
                        "The perturbation changes the label of most clean images; a trigger survives it. A patch is what "
                        "inspection learned to take a label's most confident training images away from it: on an infected "
                        "label it shows the trigger's place."
                    }
                    @if !pictures.patches.is_empty() {
                        div .patches { @for patch in &pictures.patches { (patch_pictures(patch)) } }
                    }
                }
            }
        }
    }
}

fn patch_pictures(patch: &PatchPictures) -> Markup {
    html! {
        figure .infected[patch.infected] {
            div {
                img .pixelated src=(patch.mask) alt={ "Mask of label " (patch.label) };
                img .pixelated src=(patch.product) alt={ "Mask times pattern of label " (patch.label) };
            }
            figcaption { "label " (patch.label) @if patch.infected { ", infected" } }
        }
    }
}

fn facts(status: &Status) -> Markup {
    html! {
        section {
            h2 { "What is protected" }
            dl .facts {
                dt { "Model file" } dd { (status.model.path) }
                dt { "Model server" } dd { (status.model.upstream) }
                dt { "Rule" } dd { (status.policy.rule) }
                @if let Some(artifact) = &status.artifact {
                    dt { "Artifact" }
                    dd { (age(artifact.age_seconds)) " old, of " (artifact.created) ", by doorward " (artifact.written_by) }
                    dt { "Model SHA-256" } dd { code { (artifact.model_digest) } }
                }
                dt { "Doorward" } dd { (status.version) }
                dt { "For programs" } dd { a href="status.json" { "status.json" } ", " a href="metrics" { "metrics" } }
            }
            p .legend { "This page is read again every " (REFRESH_SECONDS) " seconds." }
        }
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..3_600 => format!("{} minutes", seconds / 60),
        3_600..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The distance that scores like the held-out ones stay below with probability 0.99 (Massey 1951).
fn limit(status: &Status) -> f64 {
    let held_out = status.artifact.as_ref().map_or(0, |artifact| artifact.held_out_images);
    1.63 * (1.0 / 1000.0 + 1.0 / held_out.max(1) as f64).sqrt()
}

fn drifted(status: &Status) -> bool {
    status.score_drift.is_some_and(|distance| distance > limit(status))
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

const STYLE: &str = include_str!("status.css");

/// Often enough to watch, and no load.
const REFRESH_SECONDS: u32 = 15;
