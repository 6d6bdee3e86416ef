//! Masters as bytes: safetensors of f32, exactly the tensors of the architecture.

use crate::workshop::WorkshopError;
use crate::workshop::recipe::ModelShape;
use crate::workshop::weights::layout;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// Room for names, shapes and offsets of a tensor in the header.
const HEADER_PER_TENSOR: usize = 256;

/// Most bytes that [`encode`] gives for a shape.
pub(super) fn most_bytes(shape: &ModelShape) -> usize {
    let each = |dims: &[usize]| 4 * dims.iter().product::<usize>() + HEADER_PER_TENSOR;
    layout(shape).iter().map(|(_, dims, _)| each(dims)).sum::<usize>() + HEADER_PER_TENSOR
}

/// Bytes of masters in the order of [`layout`].
pub(super) fn encode(shape: &ModelShape, masters: &[Vec<f32>]) -> Result<Vec<u8>, WorkshopError> {
    let failed = |source| WorkshopError::Safetensors { path: Path::new("masters").to_path_buf(), source };
    let bytes: Vec<Vec<u8>> =
        masters.iter().map(|values| values.iter().flat_map(|w| w.to_le_bytes()).collect()).collect();
    let views = layout(shape)
        .into_iter()
        .zip(&bytes)
        .map(|((name, dims, _), bytes)| Ok((name, TensorView::new(Dtype::F32, dims, bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(failed)?;
    safetensors::serialize(views, None).map_err(failed)
}

/// Masters in the order of [`layout`].
///
/// # Errors
/// Says which tensor is missing, too many, of another type or shape, or holds what is no finite number.
pub(super) fn decode(shape: &ModelShape, bytes: &[u8]) -> Result<Vec<Vec<f32>>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("the body is no safetensors file: {error}"))?;
    let layout = layout(shape);
    if let Some(name) = file.names().into_iter().find(|name| !layout.iter().any(|(known, ..)| known == name)) {
        return Err(format!("{name} is no tensor of this architecture: send exactly its masters"));
    }
    layout
        .iter()
        .map(|(name, dims, _)| {
            let view = file.tensor(name).map_err(|_| format!("{name} is missing: send all masters"))?;
            if view.dtype() != Dtype::F32 || view.shape() != dims.as_slice() {
                return Err(format!(
                    "{name} must be F32 {dims:?} but is {:?} {:?}: send masters of this architecture",
                    view.dtype(),
                    view.shape()
                ));
            }
            let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if let Some(place) = values.iter().position(|w| !w.is_finite()) {
                return Err(format!(
                    "{name} holds {} at {place}: send finite masters, or none in this round",
                    values[place]
                ));
            }
            Ok(values)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ModelShape =
        ModelShape { vocabulary: 8, width: 4, layers: 1, heads: 2, kv_heads: 1, head_dim: 2, ffn: 6, context: 8 };

    fn some() -> Vec<Vec<f32>> {
        let sizes = layout(&SHAPE).into_iter().map(|(_, dims, _)| dims.iter().product::<usize>());
        sizes.enumerate().map(|(i, n)| (0..n).map(|j| (i * 100 + j) as f32 * 0.1).collect()).collect()
    }

    #[test]
    fn masters_survive_the_wire_and_fit_the_limit() {
        let bytes = encode(&SHAPE, &some()).unwrap();
        assert!(bytes.len() <= most_bytes(&SHAPE), "{} {}", bytes.len(), most_bytes(&SHAPE));
        assert_eq!(decode(&SHAPE, &bytes).unwrap(), some());
    }

    #[test]
    fn what_is_no_set_of_masters_is_refused_by_name() {
        let refused = |bytes: &[u8]| decode(&SHAPE, bytes).unwrap_err();
        assert!(refused(b"nothing").contains("no safetensors"));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut masters = some();
            masters[3][2] = bad;
            let text = refused(&encode(&SHAPE, &masters).unwrap());
            assert!(text.contains(&layout(&SHAPE)[3].0) && text.contains("at 2"), "{text}");
        }
        let wider = ModelShape { ffn: 10, ..SHAPE };
        let masters: Vec<Vec<f32>> =
            layout(&wider).into_iter().map(|(_, dims, _)| vec![0.5; dims.iter().product()]).collect();
        let text = refused(&encode(&wider, &masters).unwrap());
        assert!(text.contains("mlp.") && text.contains("must be F32"), "{text}");
        let deeper = ModelShape { layers: 2, ..SHAPE };
        let masters: Vec<Vec<f32>> =
            layout(&deeper).into_iter().map(|(_, dims, _)| vec![0.5; dims.iter().product()]).collect();
        assert!(refused(&encode(&deeper, &masters).unwrap()).contains("no tensor of this architecture"));
        let shallow = encode(&SHAPE, &some()).unwrap();
        assert!(decode(&deeper, &shallow).unwrap_err().contains("is missing"));
    }
}
