//! Files that hold the same in another form: other names, types that are mixed or wide, Q, K and V in one tensor. They become
//! files as the rest of the program knows them.

use std::borrow::Cow;

use safetensors::tensor::{Dtype, TensorView};
use wgpu_flash_attention::Element;

use crate::arguments::{Layout, RunOptions};
use crate::elements;
use crate::failure::{Failure, Result};
use crate::tensors::File;

/// A tensor of the new file.
struct Tensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

/// Those in the type that attention is computed in.
const COMPUTED: [&str; 5] = ["q", "k", "v", "qkv", "d_o"];

/// The file, or what it is in the form that is known.
pub fn rewritten(file: File, options: &RunOptions) -> Result<File> {
    let renamed = |name: &str| options.names.iter().find(|(_, other)| other == name).map(|(own, _)| own.clone());
    if let Some((_, other)) = options.names.iter().find(|(_, other)| !file.has(other)) {
        return Err(file.failure(format_args!("has no tensor '{other}'")));
    }
    let is_other = |tensor: &Tensor| {
        let is_computed = COMPUTED.contains(&tensor.name.as_str());
        options.element.filter(|element| is_computed && dtype_of(*element) != tensor.dtype)
    };
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut is_same = options.names.is_empty();
    for name in file.names() {
        let Some(view) = file.view(&name) else { continue };
        let own = renamed(&name).unwrap_or(name);
        let bytes = Cow::Borrowed(view.data());
        let mut tensor = Tensor { name: own, dtype: view.dtype(), shape: view.shape().to_vec(), bytes };
        if let Some(element) = is_other(&tensor) {
            tensor = converted(&file, tensor, element)?;
            is_same = false;
        }
        match tensor.name == "qkv" {
            true => {
                tensors.extend(separate(&file, &tensor, options.layout)?);
                is_same = false;
            }
            false => tensors.push(tensor),
        }
    }
    if is_same {
        return Ok(file);
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|names| names[0] == names[1]) {
        return Err(file.failure(format_args!("there are two tensors '{}', with --names or qkv", twice[0])));
    }
    let failed = |error: safetensors::SafeTensorError| Failure::new(format_args!("{}: {error}", file.path().display()));
    let views = tensors
        .iter()
        .map(|tensor| Ok((tensor.name.as_str(), TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?)));
    let views: Vec<_> = views.collect::<std::result::Result<_, _>>().map_err(failed)?;
    File::of(file.path(), safetensors::serialize(views, None).map_err(failed)?)
}

fn dtype_of(element: Element) -> Dtype {
    match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        other => elements::unknown(other),
    }
}

/// In another type. A number that this cannot hold is refused.
fn converted<'a>(file: &File, tensor: Tensor<'a>, element: Element) -> Result<Tensor<'a>> {
    let from = match tensor.dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::Bf16),
        Dtype::F64 => None,
        // It is refused by name where it is read.
        _ => return Ok(tensor),
    };
    let values: Vec<f64> = match from {
        Some(from) => elements::decode(from, &tensor.bytes).collect(),
        None => {
            tensor.bytes.chunks_exact(8).filter_map(|bytes| Some(f64::from_le_bytes(bytes.try_into().ok()?))).collect()
        }
    };
    let is_lost = |value: &&f64| value.is_finite() && !element.round(**value).is_finite();
    if let Some(value) = values.iter().find(is_lost) {
        let (name, element) = (&tensor.name, element.name());
        return Err(file.failure(format_args!("'{name}' holds {value:e}, which {element} cannot hold")));
    }
    let bytes = elements::encode(element, values.into_iter());
    Ok(Tensor { dtype: dtype_of(element), bytes: Cow::Owned(bytes), ..tensor })
}

/// Q, K and V of one tensor: batch × seqlen × 3 × heads × dim, or batch × 3 × heads × seqlen × dim.
fn separate(file: &File, tensor: &Tensor, layout: Layout) -> Result<[Tensor<'static>; 3]> {
    let wrong = |order: &str| {
        let shape = &tensor.shape;
        file.failure(format_args!("'qkv' has the shape {shape:?}; it must be {order}"))
    };
    let (of_run, shape) = match (layout, tensor.shape.as_slice()) {
        (Layout::Bhsd, &[batch, 3, heads, rows, dim]) => ([heads, rows, dim], vec![batch, heads, rows, dim]),
        (Layout::Bshd, &[batch, rows, 3, heads, dim]) => ([1, heads, dim], vec![batch, rows, heads, dim]),
        (Layout::Bshd, _) => return Err(wrong("batch, seqlen, 3, heads, dim")),
        _ => return Err(wrong("batch, 3, heads, seqlen, dim")),
    };
    // Where there are bytes, their number fits. Without, the dimensions beside a 0 may have any.
    let bytes_of_run = of_run.into_iter().fold(tensor.dtype.bitsize() / 8, usize::saturating_mul);
    let part = |number: usize| {
        let mut bytes = Vec::with_capacity(tensor.bytes.len() / 3);
        for run in tensor.bytes.chunks_exact(bytes_of_run.max(1)).skip(number).step_by(3) {
            bytes.extend_from_slice(run);
        }
        bytes
    };
    Ok([("q", 0), ("k", 1), ("v", 2)].map(|(name, number)| {
        let bytes = Cow::Owned(part(number));
        Tensor { name: name.to_owned(), dtype: tensor.dtype, shape: shape.clone(), bytes }
    }))
}
