//! The step program: a function per entry that launches kernels in order, the table the runtime reads, and `main`.

use std::collections::BTreeMap;

use inkwell::builder::{Builder, BuilderError};
use inkwell::context::Context;
use inkwell::module::{Linkage, Module};
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::FileType;
use inkwell::types::{FunctionType, IntType, PointerType, StructType};
use inkwell::values::{BasicValue, FunctionValue, GlobalValue, IntValue, PointerValue};
use inkwell::{AddressSpace, IntPredicate};

use super::{generate, machine, prepare, text};
use crate::abi::{ABI_VERSION, COLLECTIVE_DONE, COLLECTIVE_START, ProgramInfo};
use crate::backend::KernelLink;
use crate::program::{
    Address, CollectiveStage, CollectiveStep, Entry, Launch, LoopVar, Program, ScalarArg, Step,
};
use crate::target::Target;

/// The object with the entries' functions, the [`ProgramTable`](crate::abi::ProgramTable) and `main`.
///
/// `program` must verify; `info` is its description as JSON.
///
/// # Errors
/// LLVM refuses the module, which is a mistake of ours.
pub fn step_object(
    program: &Program,
    kernels: &[KernelLink],
    info: &[u8],
    target: &Target,
) -> Result<Vec<u8>, String> {
    let context = Context::create();
    let module = context.create_module("step");
    let emitter = Emitter::new(&context, &module);
    emitter.program(program, kernels, info).map_err(|e| format!("the step program: {e}"))?;
    let machine = machine(target)?;
    prepare(&context, &module, &machine, target);
    module.verify().map_err(|e| format!("the step program: {}", text(&e)))?;
    module
        .run_passes("default<O1>", &machine, PassBuilderOptions::create())
        .map_err(|e| format!("LLVM's passes on the step program: {}", text(&e)))?;
    generate(&machine, &module, FileType::Object)
}

struct Emitter<'a, 'c> {
    context: &'c Context,
    module: &'a Module<'c>,
    builder: Builder<'c>,
    i32: IntType<'c>,
    i64: IntType<'c>,
    ptr: PointerType<'c>,
    /// [`StepContext`](crate::abi::StepContext): spaces, launch, collective, coordinates, runtime.
    step_context: StructType<'c>,
    launch_type: FunctionType<'c>,
    collective_type: FunctionType<'c>,
}

/// What is at hand inside one entry's function.
struct Frame<'c> {
    function: FunctionValue<'c>,
    context: PointerValue<'c>,
    launch: PointerValue<'c>,
    collective: PointerValue<'c>,
    /// The rank's, one per axis of the mesh.
    coordinates: Vec<IntValue<'c>>,
    spaces: Vec<PointerValue<'c>>,
    buffers: PointerValue<'c>,
    scalars: PointerValue<'c>,
    kernels: Vec<(FunctionValue<'c>, u64)>,
    /// Current values of the loop variables around.
    vars: BTreeMap<LoopVar, IntValue<'c>>,
}

impl<'a, 'c> Emitter<'a, 'c> {
    fn new(context: &'c Context, module: &'a Module<'c>) -> Emitter<'a, 'c> {
        let ptr = context.ptr_type(AddressSpace::default());
        let (i32, i64) = (context.i32_type(), context.i64_type());
        let launch_args = [ptr.into(), i32.into(), ptr.into(), ptr.into(), ptr.into(), i64.into()];
        let collective_args = [ptr.into(), i32.into(), i32.into(), i32.into(), ptr.into()];
        Emitter {
            context,
            module,
            builder: context.create_builder(),
            i32,
            i64,
            ptr,
            step_context: context.struct_type(&[ptr.into(); 5], false),
            launch_type: context.void_type().fn_type(&launch_args, false),
            collective_type: context.void_type().fn_type(&collective_args, false),
        }
    }

    fn program(&self, program: &Program, kernels: &[KernelLink], info: &[u8]) -> Result<(), BuilderError> {
        let kernel_args =
            [self.ptr.into(), self.ptr.into(), self.i64.into(), self.i64.into(), self.ptr.into()];
        let kernel_type = self.context.void_type().fn_type(&kernel_args, false);
        // Two kernels of one content share one symbol.
        let declare = |k: &KernelLink| {
            let known = self.module.get_function(&k.symbol);
            (known.unwrap_or_else(|| self.module.add_function(&k.symbol, kernel_type, None)), k.tiles)
        };
        let functions: Vec<(FunctionValue<'c>, u64)> = kernels.iter().map(declare).collect();
        let mut entries = Vec::new();
        for (i, entry) in program.entries.iter().enumerate() {
            entries.push(self.entry(i, entry, &program.info, &functions)?);
        }
        let table = self.table(&entries, info);
        self.main(table)
    }

    // ---- constants

    fn constant(&self, name: &str, value: &dyn BasicValue<'c>) -> GlobalValue<'c> {
        let value = value.as_basic_value_enum();
        let global = self.module.add_global(value.get_type(), None, name);
        global.set_initializer(&value);
        global.set_constant(true);
        global.set_linkage(Linkage::Internal);
        global
    }

    fn table(&self, entries: &[FunctionValue<'c>], info: &[u8]) -> GlobalValue<'c> {
        let pointers: Vec<PointerValue<'c>> =
            entries.iter().map(|f| f.as_global_value().as_pointer_value()).collect();
        let list = self.constant("entries", &self.ptr.const_array(&pointers));
        let text = self.constant("info", &self.context.const_string(info, false));
        let table = self.context.const_struct(
            &[
                self.i32.const_int(ABI_VERSION as u64, false).into(),
                self.i32.const_int(entries.len() as u64, false).into(),
                list.as_pointer_value().into(),
                text.as_pointer_value().into(),
                self.i64.const_int(info.len() as u64, false).into(),
            ],
            false,
        );
        let table = self.constant("program_table", &table);
        table.set_linkage(Linkage::External);
        table
    }

    /// `int main(int argc, char **argv) { return mlc_runtime_main(argc, argv, &program_table); }`
    fn main(&self, table: GlobalValue<'c>) -> Result<(), BuilderError> {
        let ty = self.i32.fn_type(&[self.i32.into(), self.ptr.into(), self.ptr.into()], false);
        let runtime = self.module.add_function("mlc_runtime_main", ty, None);
        let ty = self.i32.fn_type(&[self.i32.into(), self.ptr.into()], false);
        let main = self.module.add_function("main", ty, None);
        self.builder.position_at_end(self.context.append_basic_block(main, ""));
        let mut args: Vec<_> = main.get_param_iter().map(|p| p.into()).collect();
        args.push(table.as_pointer_value().into());
        let call = self.builder.build_call(runtime, &args, "")?;
        let code = call.try_as_basic_value().basic();
        self.builder.build_return(code.as_ref().map(|v| v as &dyn BasicValue<'c>))?;
        Ok(())
    }

    // ---- entries

    fn entry(
        &self,
        index: usize,
        entry: &Entry,
        info: &ProgramInfo,
        kernels: &[(FunctionValue<'c>, u64)],
    ) -> Result<FunctionValue<'c>, BuilderError> {
        let ty = self.context.void_type().fn_type(&[self.ptr.into()], false);
        let function =
            self.module.add_function(&format!("entry_{index}_{}", entry.name), ty, Some(Linkage::Internal));
        self.builder.position_at_end(self.context.append_basic_block(function, ""));
        let context =
            function.get_first_param().map(|p| p.into_pointer_value()).unwrap_or(self.ptr.const_null());
        let (most_buffers, most_scalars) = entry.most_arguments();
        let array = |n: usize| self.i64.array_type(n.max(1) as u32);
        let buffers = self.builder.build_alloca(array(most_buffers), "buffers")?;
        let scalars = self.builder.build_alloca(array(most_scalars), "scalars")?;
        let field =
            |i| self.load_pointer(self.builder.build_struct_gep(self.step_context, context, i, "")?);
        let list = field(0)?;
        let launch = field(1)?;
        let mut spaces = Vec::new();
        for space in 0..info.spaces.len() {
            spaces.push(self.load_pointer(self.element(list, space)?)?);
        }
        let (collective, places) = (field(2)?, field(3)?);
        let mut coordinates = Vec::new();
        for axis in 0..info.mesh.len() {
            let word = self.element(places, axis)?;
            coordinates.push(self.builder.build_load(self.i64, word, "")?.into_int_value());
        }
        let (kernels, vars) = (kernels.to_vec(), BTreeMap::new());
        let mut frame = Frame {
            function,
            context,
            launch,
            collective,
            coordinates,
            spaces,
            buffers,
            scalars,
            kernels,
            vars,
        };
        self.steps(&mut frame, &entry.body)?;
        self.builder.build_return(None)?;
        Ok(function)
    }

    fn load_pointer(&self, address: PointerValue<'c>) -> Result<PointerValue<'c>, BuilderError> {
        Ok(self.builder.build_load(self.ptr, address, "")?.into_pointer_value())
    }

    /// Address of the i-th word of an array of pointers or `i64`.
    fn element(&self, base: PointerValue<'c>, index: usize) -> Result<PointerValue<'c>, BuilderError> {
        self.byte_offset(base, self.i64.const_int(8 * index as u64, false))
    }

    fn byte_offset(
        &self,
        base: PointerValue<'c>,
        bytes: IntValue<'c>,
    ) -> Result<PointerValue<'c>, BuilderError> {
        // SAFETY: a GEP computes an address only; what is done with it is checked by the program's verifier.
        unsafe { self.builder.build_gep(self.context.i8_type(), base, &[bytes], "") }
    }

    fn steps(&self, frame: &mut Frame<'c>, steps: &[Step]) -> Result<(), BuilderError> {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(frame, launch)?,
                Step::Collective(step) => self.collective(frame, step)?,
                Step::Loop { var, trip, reverse, body } => self.repeat(frame, *var, *trip, *reverse, body)?,
                Step::Within { var, from, below, body } => self.within(frame, *var, *from, *below, body)?,
            }
        }
        Ok(())
    }

    fn repeat(
        &self,
        frame: &mut Frame<'c>,
        var: LoopVar,
        trip: u64,
        reverse: bool,
        body: &[Step],
    ) -> Result<(), BuilderError> {
        let before = self.builder.get_insert_block().ok_or(BuilderError::UnsetPosition)?;
        let block = self.context.append_basic_block(frame.function, "loop");
        let after = self.context.append_basic_block(frame.function, "after");
        let (one, trip) = (self.i64.const_int(1, false), self.i64.const_int(trip, false));
        self.builder.build_unconditional_branch(block)?;
        self.builder.position_at_end(block);
        let counter = self.builder.build_phi(self.i64, "i")?;
        let count = counter.as_basic_value().into_int_value();
        let value = if reverse {
            let last = self.builder.build_int_sub(trip, one, "")?;
            self.builder.build_int_sub(last, count, "")?
        } else {
            count
        };
        frame.vars.insert(var, value);
        self.steps(frame, body)?;
        frame.vars.remove(&var);
        let next = self.builder.build_int_add(count, one, "")?;
        let more = self.builder.build_int_compare(IntPredicate::ULT, next, trip, "")?;
        let end = self.builder.get_insert_block().unwrap_or(block);
        counter.add_incoming(&[(&self.i64.const_zero(), before), (&next, end)]);
        self.builder.build_conditional_branch(more, block, after)?;
        self.builder.position_at_end(after);
        Ok(())
    }

    fn within(
        &self,
        frame: &mut Frame<'c>,
        var: LoopVar,
        from: u64,
        below: u64,
        body: &[Step],
    ) -> Result<(), BuilderError> {
        let then = self.context.append_basic_block(frame.function, "within");
        let after = self.context.append_basic_block(frame.function, "after");
        let word = |value: u64| self.i64.const_int(value, false);
        // Below `from` the difference wraps around to more than there are.
        let place = self.builder.build_int_sub(self.var(frame, var), word(from), "")?;
        let count = word(below.saturating_sub(from));
        let inside = self.builder.build_int_compare(IntPredicate::ULT, place, count, "")?;
        self.builder.build_conditional_branch(inside, then, after)?;
        self.builder.position_at_end(then);
        self.steps(frame, body)?;
        self.builder.build_unconditional_branch(after)?;
        self.builder.position_at_end(after);
        Ok(())
    }

    fn launch(&self, frame: &Frame<'c>, launch: &Launch) -> Result<(), BuilderError> {
        for (i, address) in launch.buffers.iter().enumerate() {
            let value = self.address(frame, address)?;
            self.builder.build_store(self.element(frame.buffers, i)?, value)?;
        }
        for (i, scalar) in launch.scalars.iter().enumerate() {
            let value = self.scalar(frame, *scalar)?;
            self.builder.build_store(self.element(frame.scalars, i)?, value)?;
        }
        let (kernel, tiles) = frame.kernels[launch.kernel as usize];
        let args = [
            frame.context.into(),
            self.i32.const_int(launch.op as u64, false).into(),
            kernel.as_global_value().as_pointer_value().into(),
            frame.buffers.into(),
            frame.scalars.into(),
            self.i64.const_int(tiles, false).into(),
        ];
        self.builder.build_indirect_call(self.launch_type, frame.launch, &args, "")?;
        Ok(())
    }

    fn collective(&self, frame: &mut Frame<'c>, step: &CollectiveStep) -> Result<(), BuilderError> {
        for (i, address) in step.buffers.iter().enumerate() {
            let value = self.address(frame, address)?;
            self.builder.build_store(self.element(frame.buffers, i)?, value)?;
        }
        let stage = match step.stage {
            CollectiveStage::Start => COLLECTIVE_START,
            CollectiveStage::Done => COLLECTIVE_DONE,
        };
        let word = |value: u32| self.i32.const_int(value as u64, false).into();
        let args =
            [frame.context.into(), word(step.op), word(step.collective), word(stage), frame.buffers.into()];
        self.builder.build_indirect_call(self.collective_type, frame.collective, &args, "")?;
        Ok(())
    }

    fn var(&self, frame: &Frame<'c>, var: LoopVar) -> IntValue<'c> {
        // The verifier has seen that the variable's loop is around.
        frame.vars.get(&var).copied().unwrap_or(self.i64.const_zero())
    }

    fn scalar(&self, frame: &Frame<'c>, scalar: ScalarArg) -> Result<IntValue<'c>, BuilderError> {
        match scalar {
            ScalarArg::Const(value) => Ok(self.i64.const_int(value as u64, true)),
            ScalarArg::Loop(var, factor, offset) => {
                let constant = |value: i64| self.i64.const_int(value as u64, true);
                let scaled = self.builder.build_int_mul(self.var(frame, var), constant(factor), "")?;
                self.builder.build_int_add(scaled, constant(offset), "")
            }
        }
    }

    fn address(&self, frame: &Frame<'c>, address: &Address) -> Result<PointerValue<'c>, BuilderError> {
        let mut bytes = self.i64.const_int(address.offset, false);
        for stride in &address.strides {
            let mut index = self.var(frame, stride.var);
            if stride.ahead != 0 {
                let ahead = self.i64.const_int(stride.ahead as u64, true);
                index = self.builder.build_int_add(index, ahead, "")?;
            }
            if stride.slots > 0 {
                let slots = self.i64.const_int(stride.slots, false);
                index = self.builder.build_int_unsigned_rem(index, slots, "")?;
            }
            let moved = self.builder.build_int_mul(index, self.i64.const_int(stride.bytes, false), "")?;
            bytes = self.builder.build_int_add(bytes, moved, "")?;
        }
        for stride in &address.ranks {
            let step = self.i64.const_int(stride.bytes, false);
            let moved = self.builder.build_int_mul(frame.coordinates[stride.axis as usize], step, "")?;
            bytes = self.builder.build_int_add(bytes, moved, "")?;
        }
        self.byte_offset(frame.spaces[address.space as usize], bytes)
    }
}
