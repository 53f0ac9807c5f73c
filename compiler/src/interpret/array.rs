//! Tensors as the interpreter holds them: shared elements seen through strides, addressed by axis name.

use super::number::Number;
use super::{Tensor, Values, placed};
use crate::graph::{Axis, DType, Mesh, Name, Sharding, Type};
use std::sync::Arc;

/// Elements; integers and truth values are exact in every mode.
#[derive(Clone)]
pub(super) enum Data<N> {
    Float(Arc<Vec<N>>),
    Int(Arc<Vec<i64>>),
}

/// A view: element at `index` is `data[offset + Σ index[i]·strides[i]]`.
#[derive(Clone)]
pub(super) struct Array<N> {
    pub ty: Type,
    pub strides: Vec<usize>,
    pub offset: usize,
    pub data: Data<N>,
}

/// Row-major strides.
pub(super) fn dense_strides(axes: &[Axis]) -> Vec<usize> {
    let mut strides = vec![1; axes.len()];
    for i in (1..axes.len()).rev() {
        strides[i - 1] = strides[i] * axes[i].size as usize;
    }
    strides
}

/// Walks an index space row by row, last axis inside; `visit` gets each operand's element at the row's start. A space
/// without axes is one row of one element.
pub(super) fn for_each_row<const K: usize>(
    axes: &[Axis],
    strides: [&[usize]; K],
    offsets: [usize; K],
    mut visit: impl FnMut([usize; K], usize, [usize; K]),
) {
    let Some((last, outer)) = axes.split_last() else {
        return visit(offsets, 1, [0; K]);
    };
    let steps: [usize; K] = std::array::from_fn(|k| strides[k][outer.len()]);
    let mut index = vec![0; outer.len()];
    let mut at = offsets;
    loop {
        visit(at, last.size as usize, steps);
        let mut i = outer.len();
        loop {
            if i == 0 {
                return;
            }
            i -= 1;
            index[i] += 1;
            for k in 0..K {
                at[k] += strides[k][i];
            }
            if index[i] < outer[i].size {
                break;
            }
            for k in 0..K {
                at[k] -= strides[k][i] * outer[i].size as usize;
            }
            index[i] = 0;
        }
    }
}

impl<N: Number> Array<N> {
    /// Dense floats.
    pub fn floats(ty: Type, data: Vec<N>) -> Array<N> {
        Array { strides: dense_strides(&ty.axes), ty, offset: 0, data: Data::Float(Arc::new(data)) }
    }

    /// Dense integers or truth values.
    pub fn ints(ty: Type, data: Vec<i64>) -> Array<N> {
        Array { strides: dense_strides(&ty.axes), ty, offset: 0, data: Data::Int(Arc::new(data)) }
    }

    /// Takes a value from outside, as an element type of `dtype`.
    pub fn from_tensor(tensor: &Tensor, dtype: DType) -> Array<N> {
        match &tensor.values {
            Values::Float(v) => {
                Array::floats(tensor.ty.clone(), v.iter().map(|x| N::given(dtype, *x)).collect())
            }
            Values::Int(v) => Array::ints(tensor.ty.clone(), v.clone()),
        }
    }

    /// Hands a value out, dense in the order of `ty`.
    pub fn to_tensor(&self, ty: &Type, with_errors: bool) -> Tensor {
        let mut errors = Vec::new();
        let values = match &self.data {
            Data::Float(_) => {
                let dense = self.dense_floats(&ty.axes);
                if with_errors {
                    errors = dense.iter().map(|x| x.error()).collect();
                }
                Values::Float(dense.iter().map(|x| x.value()).collect())
            }
            Data::Int(_) => {
                let keep = if ty.dtype == DType::Bool { 1 } else { !0 };
                Values::Int(self.dense_ints(&ty.axes).into_iter().map(|x| x & keep).collect())
            }
        };
        Tensor { ty: ty.clone(), values, errors }
    }

    /// Strides along these axes, 0 along those the array lacks.
    pub fn strides_for(&self, axes: &[Axis]) -> Vec<usize> {
        axes.iter().map(|a| self.ty.position(&a.name).map_or(0, |i| self.strides[i])).collect()
    }

    /// Stride along an axis, 0 if the array lacks it.
    pub fn stride(&self, axis: &str) -> usize {
        self.ty.position(axis).map_or(0, |i| self.strides[i])
    }

    /// The floats behind the view.
    ///
    /// # Panics
    /// On an array of integers; the verifier has checked types.
    pub fn float_data(&self) -> &[N] {
        match &self.data {
            Data::Float(v) => v,
            Data::Int(_) => panic!("{:?} is not a float", self.ty),
        }
    }

    /// The integers behind the view.
    ///
    /// # Panics
    /// On an array of floats.
    pub fn int_data(&self) -> &[i64] {
        match &self.data {
            Data::Int(v) => v,
            Data::Float(_) => panic!("{:?} is not an integer", self.ty),
        }
    }

    /// All floats in the order of `axes`, repeated along axes the array lacks.
    pub fn dense_floats(&self, axes: &[Axis]) -> Vec<N> {
        copy_dense(self.float_data(), axes, &self.strides_for(axes), self.offset)
    }

    /// All integers in the order of `axes`.
    pub fn dense_ints(&self, axes: &[Axis]) -> Vec<i64> {
        copy_dense(self.int_data(), axes, &self.strides_for(axes), self.offset)
    }

    /// The same elements seen as another type with the same axes or more; missing axes repeat.
    pub fn viewed_as(&self, ty: &Type) -> Array<N> {
        Array {
            strides: self.strides_for(&ty.axes),
            ty: ty.clone(),
            offset: self.offset,
            data: self.data.clone(),
        }
    }

    /// A rank's part of a dense tensor whose axes are those of `global`.
    ///
    /// # Errors
    /// The sharding does not fit the type.
    pub fn part(
        &self,
        global: &Type,
        sharding: &Sharding,
        mesh: &Mesh,
        rank: u64,
    ) -> Result<Array<N>, String> {
        let places = placed::places(global, sharding, mesh, rank)?;
        let local = sharding.local(global, mesh)?;
        Ok(match &self.data {
            Data::Float(_) => Array::floats(local, placed::pick(&self.dense_floats(&global.axes), &places)),
            Data::Int(_) => Array::ints(local, placed::pick(&self.dense_ints(&global.axes), &places)),
        })
    }

    /// The elements `start..start + width` of an axis; without a width the axis goes.
    pub fn slice(&self, axis: &Name, start: usize, width: Option<u64>) -> Array<N> {
        let mut out = self.clone();
        let i = self.ty.position(axis).expect("the loop's operand has its axis");
        out.offset += start * self.strides[i];
        match width {
            Some(width) => out.ty.axes[i].size = width,
            None => {
                out.ty.axes.remove(i);
                out.strides.remove(i);
            }
        }
        out
    }
}

fn copy_dense<T: Copy>(data: &[T], axes: &[Axis], strides: &[usize], offset: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(axes.iter().map(|a| a.size as usize).product());
    for_each_row(axes, [strides], [offset], |[at], n, [step]| {
        if step == 1 {
            out.extend_from_slice(&data[at..at + n]);
        } else {
            out.extend((0..n).map(|i| data[at + i * step]));
        }
    });
    out
}
