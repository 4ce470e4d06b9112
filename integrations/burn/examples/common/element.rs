//! The element of a model or a problem, as an option of the command line.

use burn::tensor::DType;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Element {
    F32,
    F16,
}

impl From<Element> for DType {
    fn from(element: Element) -> Self {
        match element {
            Element::F32 => DType::F32,
            Element::F16 => DType::F16,
        }
    }
}
