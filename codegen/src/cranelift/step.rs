//! The step program: a function per entry that launches kernels in order, the table the runtime reads, and `main`.

use std::collections::BTreeMap;

use cranelift_codegen::Context;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{
    self, AbiParam, Function, InstBuilder, SigRef, Signature, StackSlotData, StackSlotKind,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleError};
use cranelift_object::ObjectModule;

use super::kernel::{arguments, memory};
use super::object;
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
/// Cranelift refuses a function, which is a mistake of ours.
pub fn step_object(
    program: &Program,
    kernels: &[KernelLink],
    info: &[u8],
    target: &Target,
) -> Result<Vec<u8>, String> {
    let mut steps = Steps { module: object(target, "step")?, shared: FunctionBuilderContext::new() };
    steps.program(program, kernels, info).map_err(|e| format!("the step program: {e:?}"))?;
    steps.module.finish().emit().map_err(|e| format!("the step program: {e}"))
}

/// What Cranelift refuses; large, so not by value.
type Failed = Box<ModuleError>;

struct Steps {
    module: ObjectModule,
    shared: FunctionBuilderContext,
}

/// A C function of these parameters that returns `result`.
fn signature(module: &ObjectModule, params: &[ir::Type], result: Option<ir::Type>) -> Signature {
    let mut signature = module.make_signature();
    signature.params.extend(params.iter().copied().map(AbiParam::new));
    signature.returns.extend(result.map(AbiParam::new));
    signature
}

impl Steps {
    fn program(&mut self, program: &Program, kernels: &[KernelLink], info: &[u8]) -> Result<(), Failed> {
        let kernel = signature(&self.module, &[I64, I64, I64, I64, I64], None);
        let mut functions = Vec::new();
        for link in kernels {
            // Two kernels of one content share one symbol; declaring it again finds it.
            let id = self.module.declare_function(&link.symbol, Linkage::Import, &kernel)?;
            functions.push((id, link.tiles));
        }
        let mut entries = Vec::new();
        for (i, entry) in program.entries.iter().enumerate() {
            entries.push(self.entry(i, entry, &program.info, &functions)?);
        }
        let table = self.table(&entries, info)?;
        self.main(table)
    }

    // ---- constants

    fn data(&mut self, name: &str, linkage: Linkage, data: &DataDescription) -> Result<DataId, Failed> {
        let id = self.module.declare_data(name, linkage, false, false)?;
        self.module.define_data(id, data)?;
        Ok(id)
    }

    fn table(&mut self, entries: &[FuncId], info: &[u8]) -> Result<DataId, Failed> {
        let mut list = DataDescription::new();
        list.define(vec![0; 8 * entries.len().max(1)].into());
        list.set_align(8);
        for (i, &entry) in entries.iter().enumerate() {
            let entry = self.module.declare_func_in_data(entry, &mut list);
            list.write_function_addr(8 * i as u32, entry);
        }
        let list = self.data("entries", Linkage::Local, &list)?;
        let mut text = DataDescription::new();
        text.define(info.into());
        let text = self.data("info", Linkage::Local, &text)?;

        // ProgramTable: two words of 32 bits, two pointers, a length.
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&ABI_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&(info.len() as u64).to_le_bytes());
        let mut table = DataDescription::new();
        table.define(bytes.into());
        table.set_align(8);
        for (offset, data) in [(8, list), (16, text)] {
            let data = self.module.declare_data_in_data(data, &mut table);
            table.write_data_addr(offset, data, 0);
        }
        self.data("program_table", Linkage::Export, &table)
    }

    /// Defines a function whose body `fill` writes.
    fn define(
        &mut self,
        name: &str,
        linkage: Linkage,
        signature: Signature,
        fill: impl FnOnce(&mut ObjectModule, FunctionBuilder<'_>),
    ) -> Result<FuncId, Failed> {
        let id = self.module.declare_function(name, linkage, &signature)?;
        let mut context = Context::for_function(Function::with_name_signature(Default::default(), signature));
        fill(&mut self.module, FunctionBuilder::new(&mut context.func, &mut self.shared));
        self.module.define_function(id, &mut context)?;
        Ok(id)
    }

    /// `int main(int argc, char **argv) { return mlc_runtime_main(argc, argv, &program_table); }`
    fn main(&mut self, table: DataId) -> Result<(), Failed> {
        let runtime = signature(&self.module, &[I32, I64, I64], Some(I32));
        let runtime = self.module.declare_function("mlc_runtime_main", Linkage::Import, &runtime)?;
        let main = signature(&self.module, &[I32, I64], Some(I32));
        self.define("main", Linkage::Export, main, |module, mut b| {
            let block = b.create_block();
            b.append_block_params_for_function_params(block);
            b.switch_to_block(block);
            let table = module.declare_data_in_func(table, b.func);
            let runtime = module.declare_func_in_func(runtime, b.func);
            // Called directly and not through a table of addresses, so that a library without a runtime still loads.
            b.func.dfg.ext_funcs[runtime].colocated = true;
            let table = b.ins().symbol_value(I64, table);
            let (argc, argv) = (b.block_params(block)[0], b.block_params(block)[1]);
            let call = b.ins().call(runtime, &[argc, argv, table]);
            let code = b.inst_results(call)[0];
            b.ins().return_(&[code]);
            b.seal_all_blocks();
            b.finalize(module.target_config());
        })?;
        Ok(())
    }

    fn entry(
        &mut self,
        index: usize,
        entry: &Entry,
        info: &ProgramInfo,
        kernels: &[(FuncId, u64)],
    ) -> Result<FuncId, Failed> {
        let name = format!("entry_{index}_{}", entry.name);
        let step = signature(&self.module, &[I64], None);
        self.define(&name, Linkage::Local, step, |module, b| {
            let mut frame = Frame::new(module, b, entry, info, kernels);
            frame.steps(&entry.body);
            frame.b.ins().return_(&[]);
            frame.b.seal_all_blocks();
            let config = frame.module.target_config();
            frame.b.finalize(config);
        })
    }
}

/// What is at hand inside one entry's function.
struct Frame<'m, 'b> {
    module: &'m mut ObjectModule,
    b: FunctionBuilder<'b>,
    /// The [`StepContext`](crate::abi::StepContext).
    context: ir::Value,
    launch: ir::Value,
    launch_type: SigRef,
    /// How [`CollectiveFn`](crate::abi::CollectiveFn) is called.
    collective_type: SigRef,
    /// The rank's, one per axis of the mesh.
    coordinates: Vec<ir::Value>,
    spaces: Vec<ir::Value>,
    buffers: ir::Value,
    scalars: ir::Value,
    kernels: &'m [(FuncId, u64)],
    /// Kernels named in this function.
    named: BTreeMap<FuncId, ir::FuncRef>,
    /// Current values of the loop variables around.
    vars: BTreeMap<LoopVar, ir::Value>,
}

impl<'m, 'b> Frame<'m, 'b> {
    fn new(
        module: &'m mut ObjectModule,
        mut b: FunctionBuilder<'b>,
        entry: &Entry,
        info: &ProgramInfo,
        kernels: &'m [(FuncId, u64)],
    ) -> Frame<'m, 'b> {
        let block = b.create_block();
        b.append_block_params_for_function_params(block);
        b.switch_to_block(block);
        let context = b.block_params(block)[0];
        let launch = signature(module, &[I64, I32, I64, I64, I64, I64], None);
        let launch_type = b.import_signature(launch);
        let collective = signature(module, &[I64, I32, I32, I32, I64], None);
        let collective_type = b.import_signature(collective);
        let (most_buffers, most_scalars) = entry.most_arguments();
        let [buffers, scalars] = [most_buffers, most_scalars].map(|n| {
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * n.max(1) as u32, 3);
            let slot = b.create_sized_stack_slot(data);
            b.ins().stack_addr(I64, slot, 0)
        });
        let list = b.ins().load(I64, memory(), context, 0);
        let launch = b.ins().load(I64, memory(), context, 8);
        let spaces =
            (0..info.spaces.len()).map(|i| b.ins().load(I64, memory(), list, 8 * i as i32)).collect();
        let mut coordinates = Vec::new();
        if !info.mesh.is_empty() {
            let list = b.ins().load(I64, memory(), context, 24);
            coordinates.extend((0..info.mesh.len()).map(|i| b.ins().load(I64, memory(), list, 8 * i as i32)));
        }
        let (named, vars) = (BTreeMap::new(), BTreeMap::new());
        Frame {
            module,
            b,
            context,
            launch,
            launch_type,
            collective_type,
            coordinates,
            spaces,
            buffers,
            scalars,
            kernels,
            named,
            vars,
        }
    }

    fn constant(&mut self, value: i64) -> ir::Value {
        self.b.ins().iconst(I64, value)
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Launch(launch) => self.launch(launch),
                Step::Collective(step) => self.collective(step),
                Step::Loop { var, trip, reverse, body } => self.repeat(*var, *trip, *reverse, body),
                Step::Within { var, from, below, body } => self.within(*var, *from, *below, body),
            }
        }
    }

    fn repeat(&mut self, var: LoopVar, trip: u64, reverse: bool, body: &[Step]) {
        let [block, after] = [(); 2].map(|()| self.b.create_block());
        let count = self.b.append_block_param(block, I64);
        let zero = self.constant(0);
        self.b.ins().jump(block, &arguments([zero]));
        self.b.switch_to_block(block);
        let value = if reverse {
            let last = self.constant(trip as i64 - 1);
            self.b.ins().isub(last, count)
        } else {
            count
        };
        self.vars.insert(var, value);
        self.steps(body);
        self.vars.remove(&var);
        let next = self.b.ins().iadd_imm_s(count, 1);
        let trip = self.constant(trip as i64);
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, next, trip);
        self.b.ins().brif(more, block, &arguments([next]), after, &[]);
        self.b.switch_to_block(after);
    }

    fn within(&mut self, var: LoopVar, from: u64, below: u64, body: &[Step]) {
        let [then, after] = [(); 2].map(|()| self.b.create_block());
        let (var, from, count) =
            (self.var(var), self.constant(from as i64), self.constant(below.saturating_sub(from) as i64));
        // Below `from` the difference wraps around to more than there are.
        let place = self.b.ins().isub(var, from);
        let inside = self.b.ins().icmp(IntCC::UnsignedLessThan, place, count);
        self.b.ins().brif(inside, then, &[], after, &[]);
        self.b.switch_to_block(then);
        self.steps(body);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }

    fn launch(&mut self, launch: &Launch) {
        for (i, address) in launch.buffers.iter().enumerate() {
            let value = self.address(address);
            self.b.ins().store(memory(), value, self.buffers, 8 * i as i32);
        }
        for (i, scalar) in launch.scalars.iter().enumerate() {
            let value = self.scalar(*scalar);
            self.b.ins().store(memory(), value, self.scalars, 8 * i as i32);
        }
        let (kernel, tiles) = self.kernels[launch.kernel as usize];
        let kernel = match self.named.get(&kernel) {
            Some(&known) => known,
            None => {
                let named = self.module.declare_func_in_func(kernel, self.b.func);
                self.named.insert(kernel, named);
                named
            }
        };
        let kernel = self.b.ins().func_addr(I64, kernel);
        let op = self.b.ins().iconst(I32, launch.op as i64);
        let tiles = self.constant(tiles as i64);
        let args = [self.context, op, kernel, self.buffers, self.scalars, tiles];
        self.b.ins().call_indirect(self.launch_type, self.launch, &args);
    }

    fn collective(&mut self, step: &CollectiveStep) {
        for (i, address) in step.buffers.iter().enumerate() {
            let value = self.address(address);
            self.b.ins().store(memory(), value, self.buffers, 8 * i as i32);
        }
        let stage = match step.stage {
            CollectiveStage::Start => COLLECTIVE_START,
            CollectiveStage::Done => COLLECTIVE_DONE,
        };
        let [op, which, stage] =
            [step.op, step.collective, stage].map(|word| self.b.ins().iconst(I32, word as i64));
        let function = self.b.ins().load(I64, memory(), self.context, 16);
        let args = [self.context, op, which, stage, self.buffers];
        self.b.ins().call_indirect(self.collective_type, function, &args);
    }

    fn var(&mut self, var: LoopVar) -> ir::Value {
        // The verifier has seen that the variable's loop is around.
        match self.vars.get(&var) {
            Some(&value) => value,
            None => self.constant(0),
        }
    }

    fn scalar(&mut self, scalar: ScalarArg) -> ir::Value {
        match scalar {
            ScalarArg::Const(value) => self.constant(value),
            ScalarArg::Loop(var, factor, offset) => {
                let (var, factor, offset) = (self.var(var), self.constant(factor), self.constant(offset));
                let scaled = self.b.ins().imul(var, factor);
                self.b.ins().iadd(scaled, offset)
            }
        }
    }

    fn address(&mut self, address: &Address) -> ir::Value {
        let mut bytes = self.constant(address.offset as i64);
        for stride in &address.strides {
            let mut index = self.var(stride.var);
            if stride.ahead != 0 {
                let ahead = self.constant(stride.ahead);
                index = self.b.ins().iadd(index, ahead);
            }
            if stride.slots > 0 {
                let slots = self.constant(stride.slots as i64);
                index = self.b.ins().urem(index, slots);
            }
            let stride = self.constant(stride.bytes as i64);
            let moved = self.b.ins().imul(index, stride);
            bytes = self.b.ins().iadd(bytes, moved);
        }
        for stride in &address.ranks {
            let step = self.constant(stride.bytes as i64);
            let moved = self.b.ins().imul(self.coordinates[stride.axis as usize], step);
            bytes = self.b.ins().iadd(bytes, moved);
        }
        self.b.ins().iadd(self.spaces[address.space as usize], bytes)
    }
}
