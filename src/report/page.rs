//! The page's template.

use doorward_proxy::page::head;
use maud::{DOCTYPE, Markup, html};

use super::chart::{Bars, histogram};
use super::{Example, Firewall, LabelCard, LabelScores, PatchPictures, Report};

pub(super) fn page(
    report: &Report<'_>,
    cards: &[LabelCard],
    eta: Option<&str>,
    scores: &[LabelScores],
) -> String {
    let infected = &report.inspection.infected;
    let verdict = verdict(infected);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head { (head(&verdict)) }
            body {
                main {
                    header .verdict .infected[!infected.is_empty()] {
                        p .name { "Doorward inspection" }
                        h1 { (verdict) }
                        p { (basis(report)) }
                    }
                    (labels(report, cards))
                    (patches(report, cards))
                    (firewall(report, eta))
                    (distributions(report.firewall.as_ref(), scores))
                    (facts(report))
                }
            }
        }
    };
    markup.into_string()
}

/// The verdict, in one sentence.
fn verdict(infected: &[usize]) -> String {
    match infected {
        [] => "No label looks infected.".to_owned(),
        [label] => format!("The model looks backdoored: label {label} is infected."),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(usize::to_string).collect();
            format!(
                "The model looks backdoored: labels {} and {last} are infected.",
                first.join(", ")
            )
        }
    }
}

fn basis(report: &Report<'_>) -> String {
    let (inspected, labels) = (report.inspection.labels.len(), report.model.labels());
    let images = thousands(report.images.len());
    let all = match inspected {
        _ if inspected == labels => format!("all {labels} labels"),
        _ => format!("{inspected} of {labels} labels; the others have too few images"),
    };
    format!(
        "{images} training images, {all}. Inspection can miss an infected label and can name a clean \
         one: look at the pictures."
    )
}

fn labels(report: &Report<'_>, cards: &[LabelCard]) -> Markup {
    let mut by_label: Vec<&LabelCard> = cards.iter().collect();
    by_label.sort_by_key(|card| card.figures.label);
    let bars = |value: &dyn Fn(&LabelCard) -> f64| {
        by_label.iter().map(|card| (card.figures.label, value(card), card.infected)).collect()
    };
    let share = |title: &'static str, value: &dyn Fn(&LabelCard) -> f64| {
        Bars { title, bars: bars(value), end: 1.0, line: None }.svg()
    };
    let index = |title: &'static str, value: &dyn Fn(&LabelCard) -> f64| {
        let threshold = report.anomaly_threshold;
        let line = Some((threshold, format!("infected above {threshold}")));
        Bars { title, bars: bars(value), end: 1.0, line }.svg()
    };
    let ratios = share("Transfer ratio per label", &|card| card.figures.transfer_ratio);
    let anomalies = index("Anomaly index per label", &|card| card.figures.anomaly_index);
    let excesses = share("Survivors beyond clean images per label", &|card| {
        card.figures.survival_excess.max(0.0)
    });
    let survivals = index("Anomaly index of the survivors per label", &|card| {
        card.figures.survival_anomaly_index
    });
    let shifts =
        share("Separation of training and clean images per label", &|card| card.figures.shift);
    let shift_indices = index("Anomaly index of the separation per label", &|card| {
        card.figures.shift_anomaly_index
    });
    html! {
        section {
            h2 { "Labels" }
            p {
                "A patch is learned that changes the label of a label's most confident images. On a clean label it "
                "changes the least confident ones too: a high transfer ratio. On an infected label it breaks the "
                "trigger and little else: a low ratio, and a high anomaly index."
            }
            div .columns {
                figure { figcaption { "Transfer ratio" } (ratios) }
                figure { figcaption { "Anomaly index" } (anomalies) }
            }
            p {
                "Images with a trigger keep their label under the adversarial perturbations, and the model represents "
                "them apart from clean ones. A label where both hold for far more training images than clean ones is "
                "infected, and so is one that its patch names if its most confident images survive."
            }
            div .columns {
                figure { figcaption { "Survivors beyond clean images" } (excesses) }
                figure { figcaption { "Anomaly index of the survivors" } (survivals) }
            }
            p {
                "A trigger that is spread over the image may survive nothing, yet the model represents the label's training "
                "images unlike its clean ones. How well the two separate (AUROC; 0.5: not at all) is compared with the other labels."
            }
            div .columns {
                figure { figcaption { "Separation of training and clean images" } (shifts) }
                figure { figcaption { "Anomaly index of the separation" } (shift_indices) }
            }
            div .wide {
                table {
                    thead {
                        tr {
                            th { "Label" } th { "Transfer ratio" } th { "Anomaly index" }
                            th { "Top-K changed" } th { "Mask, pixels" }
                            th { "Survivors" } th { "Beyond clean" } th { "of top-K" } th { "Separation" } th .verdict { "Verdict" }
                        }
                    }
                    tbody {
                        @for card in &by_label {
                            tr .infected[card.infected] {
                                td { (card.figures.label) }
                                td { (format!("{:.2}", card.figures.transfer_ratio)) }
                                td { (format!("{:.2}", card.figures.anomaly_index)) }
                                td { (percent(card.figures.top_k_changed)) }
                                td { (format!("{:.1}", card.figures.mask_l1)) }
                                td { (percent(card.figures.survival)) }
                                td { (percent(card.figures.survival_excess)) }
                                td { (percent(card.figures.top_k_survival)) }
                                td { (format!("{:.2}", card.figures.shift)) }
                                td .verdict { @if card.infected { "infected" } @else { "clean" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn patches(report: &Report<'_>, cards: &[LabelCard]) -> Markup {
    let left_out = cards.iter().filter(|card| card.patch.is_none()).count();
    html! {
        section {
            h2 { "Patches" }
            p {
                "x' = (1 - mask) x + mask pattern. Below each patch, training images predicted as the label, without "
                "and with it, and the label that it turns them into."
                @if left_out > 0 { " The " (left_out) " least anomalous labels are left out." }
            }
            div .cards {
                @for card in cards {
                    @if let Some(pictures) = &card.patch { (patch(report, card, pictures)) }
                }
            }
        }
    }
}

fn patch(report: &Report<'_>, card: &LabelCard, pictures: &PatchPictures) -> Markup {
    let label = card.figures.label;
    html! {
        article .infected[card.infected] {
            h3 {
                "Label " (label)
                @if card.infected { span .badge { "infected" } }
            }
            p .figures {
                "ratio " (format!("{:.2}", card.figures.transfer_ratio))
                " · anomaly " (format!("{:.2}", card.figures.anomaly_index))
                " · mask " (format!("{:.1}", card.figures.mask_l1)) " px"
            }
            div .pictures {
                (picture(report, &pictures.mask, &format!("Mask of label {label}"), "mask"))
                (picture(report, &pictures.pattern, &format!("Pattern of label {label}"), "pattern"))
                (picture(report, &pictures.product, &format!("Mask times pattern of label {label}"), "mask × pattern"))
            }
            (examples(report, label, "Most confident images", &pictures.examples[0]))
            (examples(report, label, "Least confident images", &pictures.examples[1]))
        }
    }
}

fn examples(report: &Report<'_>, label: usize, title: &str, examples: &[Example]) -> Markup {
    html! {
        h4 { (title) }
        div .pictures .pairs {
            @for example in examples {
                figure {
                    (image(report, &example.before, &format!("Image predicted as {label}")))
                    (image(report, &example.after, &format!("The same, patched, predicted as {}", example.label)))
                    figcaption .changed[example.label != label] {
                        (label) " → " (example.label)
                    }
                }
            }
        }
    }
}

fn firewall(report: &Report<'_>, eta: Option<&str>) -> Markup {
    let (Some(firewall), Some(eta)) = (&report.firewall, eta) else {
        return html! {
            section { h2 { "Universal perturbation" } p { (report.without_firewall) } }
        };
    };
    let manifest = &firewall.artifact.manifest;
    let found = &manifest.perturbation;
    html! {
        section {
            h2 { "Universal perturbation" }
            div .columns.uneven {
                figure .large {
                    (image(report, eta, "The universal perturbation"))
                    figcaption { "amplified " (format!("{:.0}", 0.5 / found.epsilon)) " times; grey is no change" }
                }
                div {
                    p {
                        "Added to an image it changes the label of most clean ones. An image that keeps its label with "
                        "a wide margin is suspect: a trigger survives."
                    }
                    dl {
                        dt { "Fooling rate" }
                        dd { (percent(found.fooling_rate)) " of " (thousands(manifest.images.holdout)) " held-out images" }
                        dt { "Sink" }
                        dd { "label " (found.sink) ", where " (percent(found.sink_share)) " of them land" }
                        dt { "l∞ norm" }
                        dd { (format!("{:.1}", found.epsilon * 255.0)) " of 255 grey levels" }
                        dt { "l2 norm" }
                        dd { (format!("{:.2}", found.l2)) " in units of the pixel range" }
                    }
                }
            }
        }
    }
}

fn distributions(firewall: Option<&Firewall<'_>>, scores: &[LabelScores]) -> Markup {
    let Some(firewall) = firewall else { return html! {} };
    let bound = firewall.thresholds.false_rejection_rate_bound;
    let with_triggered = !firewall.triggered.is_empty();
    html! {
        section {
            h2 { "Scores" }
            p {
                "Held-out clean images" @if with_triggered { " and triggered ones" }
                " by predicted label: how far they lie above its threshold. Right of "
                "the line is turned away. Of inputs like the held-out images at most " (format!("{:.2} %", bound * 100.0))
                " are. Heights are shares of each kind."
            }
            p .legend {
                span .key.clean {} "clean"
                @if with_triggered { span .key.triggered {} "triggered" }
            }
            div .cards.small {
                @for scores in scores {
                    figure {
                        figcaption {
                            b { "Label " (scores.label) }
                            " " (turned_away("clean", &scores.clean))
                            @if !scores.triggered.is_empty() { " · " (turned_away("triggered", &scores.triggered)) }
                        }
                        (histogram(scores))
                    }
                }
            }
        }
    }
}

fn turned_away(kind: &str, scores: &[f32]) -> String {
    let above = scores.iter().filter(|&&score| score > 0.0).count();
    format!("{} of {} {kind} turned away", thousands(above), thousands(scores.len()))
}

fn facts(report: &Report<'_>) -> Markup {
    html! {
        section {
            h2 { "Run" }
            dl .facts {
                @for (name, value) in &report.facts {
                    dt { (name) }
                    dd { (value) }
                }
            }
        }
    }
}

fn picture(report: &Report<'_>, data: &str, alt: &str, caption: &str) -> Markup {
    html! { figure { (image(report, data, alt)) figcaption { (caption) } } }
}

fn image(report: &Report<'_>, data: &str, alt: &str) -> Markup {
    let [_, height, width] = report.images.shape();
    // Small pictures are shown pixel by pixel, large ones smoothly.
    let small = width.max(height) <= PIXELATED;
    html! { img .pixelated[small] src=(data) alt=(alt) width=(width) height=(height); }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `12345` as `12,345`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Longest side of a picture whose pixels are shown, pixels.
const PIXELATED: usize = 96;
