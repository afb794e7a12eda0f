use candle_core::{Device, Tensor};

use super::*;
use doorward_detection::{LabelInspection, Patch};
use doorward_engine::{Cotangent, InputDomain};

/// Answers with the label 0 whatever it is asked.
struct Constant {
    domain: InputDomain,
}

impl Classifier for Constant {
    fn domain(&self) -> &InputDomain {
        &self.domain
    }

    fn labels(&self) -> usize {
        3
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
        Ok(Tensor::new(&[1f32, 0.0, 0.0], &Device::Cpu)?.broadcast_as((batch.dim(0)?, 3))?)
    }

    fn logits_and_gradient(
        &self,
        _: &Tensor,
        _: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error> {
        unreachable!("a page needs no gradient")
    }
}

fn inspected(label: usize, ratio: f64, shape: [usize; 3]) -> Inspected {
    let [channels, height, width] = shape;
    let full = |dims: (usize, usize, usize, usize)| {
        Tensor::ones(dims, candle_core::DType::F32, &Device::Cpu).unwrap()
    };
    let figures = LabelInspection {
        label,
        transfer_ratio: ratio,
        anomaly_index: (1.0 - ratio) * 10.0,
        top_k_changed: 1.0,
        mask_l1: (height * width) as f64,
        top_k_survival: 0.0,
        survival: 0.1,
        survival_excess: -0.01,
        survival_anomaly_index: 0.0,
        shift: 0.5,
        shift_anomaly_index: 0.0,
    };
    Inspected {
        figures,
        patch: Patch {
            mask: full((1, 1, height, width)),
            pattern: full((1, channels, height, width)),
        },
        survivors: Vec::new(),
        members: vec![0, 1, 2],
        top: vec![0, 1],
        bottom: vec![2],
    }
}

/// The page of a model with labels 0, infected, and 2.
fn page(shape: [usize; 3], facts: Vec<(String, String)>) -> String {
    let [channels, ..] = shape;
    let pixels = vec![7; 3 * shape.iter().product::<usize>()];
    Report {
        model: &Constant {
            domain: InputDomain {
                shape,
                lower: vec![-1.0; channels],
                upper: vec![1.0; channels],
                channels_last: false,
                fp32: true,
            },
        },
        inspection: &Inspection {
            labels: vec![inspected(2, 1.0, shape), inspected(0, 0.1, shape)],
            infected: vec![0],
        },
        images: &Images::from_parts(shape, pixels, vec![None; 3]).unwrap(),
        anomaly_threshold: 3.5,
        firewall: None,
        without_firewall: "There is no artifact.".to_owned(),
        facts,
    }
    .html()
    .unwrap()
}

/// The names of the elements, after checking that each is closed where it should be.
fn elements(html: &str) -> Vec<String> {
    let (mut open, mut names) = (Vec::new(), Vec::new());
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).expect("a name").to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "at {tag}");
            continue;
        }
        assert!(!tag.contains('<'), "{tag}");
        if !["!DOCTYPE", "img", "meta"].contains(&name.as_str()) {
            open.push(name.clone());
        }
        names.push(name);
    }
    assert_eq!(open, Vec::<String>::new());
    names
}

#[test]
fn a_page_is_well_formed_and_has_pictures_of_every_label() {
    for shape in [[1, 4, 5], [3, 4, 5], [2, 4, 5]] {
        let html = page(shape, Vec::new());
        let names = elements(&html);
        // Mask, pattern, product, and three examples before and after.
        assert_eq!(names.iter().filter(|name| *name == "img").count(), 2 * (3 + 2 * 3));
        assert_eq!(names.iter().filter(|name| *name == "svg").count(), 6);
        assert!(html.find("Label 0").unwrap() < html.find("Label 2").unwrap());
        assert!(html.contains("The model looks backdoored: label 0 is infected."));
        assert!(html.contains("There is no artifact."));
    }
}

#[test]
fn a_page_loads_nothing() {
    let html = page([3, 4, 5], Vec::new());
    for loads in ["http:", "https:", "url(", "@import", "<script", "<link", "<iframe", "srcset"] {
        assert!(!html.contains(loads), "{loads}");
    }
    for (start, _) in html.match_indices("src=\"") {
        assert!(html[start + 5..].starts_with("data:image/png;base64,"));
    }
}

#[test]
fn text_is_escaped() {
    let name = "<script>alert(1)</script>\"&";
    let html = page([1, 4, 5], vec![("model".to_owned(), name.to_owned())]);
    assert!(!html.contains("<script>"));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;"));
    elements(&html);
}

#[test]
fn pictures_are_png_of_the_input_s_size() {
    use base64::Engine as _;
    let html = page([3, 4, 5], Vec::new());
    let data = html.split("base64,").nth(1).unwrap().split('"').next().unwrap();
    let png = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
    let picture = image::load_from_memory(&png).unwrap();
    assert_eq!((picture.width(), picture.height()), (5, 4));
    // The first one is the infected label's mask, which is 1 everywhere.
    assert!(picture.to_rgb8().pixels().all(|pixel| pixel.0 == [255; 3]));
}
