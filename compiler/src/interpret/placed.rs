//! Where the elements of a tensor lie that is spread over ranks: cutting a whole one into parts, and putting parts together.

use super::{Tensor, Values};
use crate::graph::shape::show;
use crate::graph::{Axis, Mesh, Sharding, Type};

/// The type of the whole tensor, from that of one rank's part.
pub fn global_type(local: &Type, sharding: &Sharding, mesh: &Mesh) -> Type {
    let whole = |axis: &Axis| Axis::new(&axis.name, axis.size * mesh.ways(sharding.over(&axis.name)));
    Type::new(local.dtype, local.axes.iter().map(whole).collect())
}

/// The places in the whole tensor (row-major in the order of `global`'s axes) of a rank's elements, in their own row-major
/// order.
///
/// # Errors
/// The sharding does not fit the type, see [`Sharding::problem`].
pub fn places(global: &Type, sharding: &Sharding, mesh: &Mesh, rank: u64) -> Result<Vec<u64>, String> {
    if let Some(problem) = sharding.problem(global, mesh) {
        return Err(problem);
    }
    let mut places = vec![0];
    for axis in &global.axes {
        let own = along(axis, sharding, mesh, rank);
        places = places.iter().flat_map(|p| own.iter().map(move |i| p * axis.size + i)).collect();
    }
    Ok(places)
}

/// A rank's elements along one axis, ascending.
fn along(axis: &Axis, sharding: &Sharding, mesh: &Mesh, rank: u64) -> Vec<u64> {
    let Some(split) = sharding.split.get(&axis.name) else { return (0..axis.size).collect() };
    let block = axis.size / split.blocks;
    let part = block / mesh.ways(&split.over);
    let first = mesh.position(rank, &split.over) * part;
    (0..split.blocks).flat_map(|b| (0..part).map(move |i| b * block + first + i)).collect()
}

/// The part of a whole tensor that a rank holds.
///
/// # Errors
/// The sharding does not fit the tensor.
pub fn cut(whole: &Tensor, sharding: &Sharding, mesh: &Mesh, rank: u64) -> Result<Tensor, String> {
    let places = places(&whole.ty, sharding, mesh, rank)?;
    let values = match &whole.values {
        Values::Float(v) => Values::Float(pick(v, &places)),
        Values::Int(v) => Values::Int(pick(v, &places)),
    };
    let errors = if whole.errors.is_empty() { Vec::new() } else { pick(&whole.errors, &places) };
    Ok(Tensor { ty: sharding.local(&whole.ty, mesh)?, values, errors })
}

/// The elements at these places.
pub(super) fn pick<T: Copy>(data: &[T], places: &[u64]) -> Vec<T> {
    places.iter().map(|p| data[*p as usize]).collect()
}

/// The whole tensor from the parts of all ranks, in the order of ranks. Of an error bound that ranks have found differently, the
/// largest holds.
///
/// # Errors
/// The tensor is partial, the parts do not fit the sharding, or two ranks hold different bits at one place.
pub fn join(parts: &[&Tensor], sharding: &Sharding, mesh: &Mesh) -> Result<Tensor, String> {
    if !sharding.partial.is_empty() {
        return Err(format!("it lies as `{sharding}`, a sum that was never taken"));
    }
    let Some(first) = parts.first().filter(|_| parts.len() as u64 == mesh.ranks()) else {
        return Err(format!("there are {} parts for {} ranks", parts.len(), mesh.ranks()));
    };
    let global = global_type(&first.ty, sharding, mesh);
    let n = global.numel() as usize;
    let mut owner: Vec<Option<usize>> = vec![None; n];
    let mut bits = vec![0u64; n];
    let mut errors = vec![0.0f64; if first.errors.is_empty() { 0 } else { n }];
    for (rank, part) in parts.iter().enumerate() {
        if part.ty != first.ty {
            return Err(format!("rank {rank} holds {}, rank 0 {}", show(&part.ty), show(&first.ty)));
        }
        for (i, place) in places(&global, sharding, mesh, rank as u64)?.into_iter().enumerate() {
            let place = place as usize;
            let own = element_bits(part, i);
            match owner[place] {
                Some(other) if bits[place] != own => {
                    return Err(format!(
                        "ranks {other} and {rank} hold different values at element {place} of {}: {} and {}",
                        show(&global),
                        shown(part, bits[place]),
                        shown(part, own)
                    ));
                }
                Some(_) => {}
                None => (owner[place], bits[place]) = (Some(rank), own),
            }
            if let (Some(known), Some(error)) = (errors.get_mut(place), part.errors.get(i)) {
                *known = known.max(*error);
            }
        }
    }
    let values = match first.values {
        Values::Float(_) => Values::Float(bits.into_iter().map(f64::from_bits).collect()),
        Values::Int(_) => Values::Int(bits.into_iter().map(u64::cast_signed).collect()),
    };
    Ok(Tensor { ty: global, values, errors })
}

fn element_bits(tensor: &Tensor, i: usize) -> u64 {
    match &tensor.values {
        Values::Float(v) => v[i].to_bits(),
        Values::Int(v) => v[i].cast_unsigned(),
    }
}

fn shown(like: &Tensor, bits: u64) -> String {
    match like.values {
        Values::Float(_) => format!("{:?}", f64::from_bits(bits)),
        Values::Int(_) => bits.cast_signed().to_string(),
    }
}
