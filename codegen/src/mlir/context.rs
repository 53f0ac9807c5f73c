//! A safe face for the few functions of MLIR's C API that kernels need.
//!
//! Only the dialects and passes of [`PIPELINE`](super::PIPELINE) are registered, so only they are linked.

use std::cell::RefCell;
use std::ffi::c_void;
use std::marker::PhantomData;

use mlir_sys::{
    MlirContext, MlirDiagnostic, MlirLogicalResult, MlirModule, MlirStringRef,
    mlirContextAppendDialectRegistry, mlirContextAttachDiagnosticHandler, mlirContextCreateWithThreading,
    mlirContextDestroy, mlirContextLoadAllAvailableDialects, mlirDiagnosticGetLocation, mlirDiagnosticPrint,
    mlirDialectHandleInsertDialect, mlirDialectRegistryCreate, mlirDialectRegistryDestroy,
    mlirGetDialectHandle__arith__, mlirGetDialectHandle__cf__, mlirGetDialectHandle__func__,
    mlirGetDialectHandle__llvm__, mlirGetDialectHandle__math__, mlirGetDialectHandle__memref__,
    mlirGetDialectHandle__scf__, mlirGetDialectHandle__vector__, mlirLocationPrint, mlirModuleCreateParse,
    mlirModuleDestroy, mlirModuleGetOperation, mlirOperationPrint, mlirParsePassPipeline,
    mlirPassManagerCreate, mlirPassManagerDestroy, mlirPassManagerGetAsOpPassManager, mlirPassManagerRunOnOp,
    mlirRegisterAllLLVMTranslations, mlirRegisterConversionArithToLLVMConversionPass,
    mlirRegisterConversionConvertControlFlowToLLVMPass, mlirRegisterConversionConvertFuncToLLVMPass,
    mlirRegisterConversionConvertMathToLLVMPass, mlirRegisterConversionConvertVectorToLLVMPass,
    mlirRegisterConversionConvertVectorToSCF, mlirRegisterConversionFinalizeMemRefToLLVMConversionPass,
    mlirRegisterConversionReconcileUnrealizedCastsPass, mlirRegisterConversionSCFToControlFlowPass,
    mlirRegisterConversionUBToLLVMConversionPass, mlirRegisterMemRefExpandStridedMetadataPass,
    mlirTranslateModuleToLLVMIR,
};

/// An MLIR context: owns all types and attributes of its modules and collects their diagnostics. Stays on one thread.
pub struct Context {
    raw: MlirContext,
    /// Boxed: the handler keeps its address.
    diagnostics: Box<RefCell<Vec<String>>>,
}

/// A parsed module.
pub struct Module<'c> {
    raw: MlirModule,
    context: &'c Context,
    _owned: PhantomData<*mut c_void>,
}

impl Default for Context {
    fn default() -> Context {
        Context::new()
    }
}

impl Context {
    /// A context that knows what kernels use.
    pub fn new() -> Context {
        let diagnostics = Box::new(RefCell::new(Vec::new()));
        // SAFETY: the registry lives until it has been appended; registering passes twice is allowed; the handler's data
        // outlives the context, since `Drop` destroys that first.
        let raw = unsafe {
            mlirRegisterConversionSCFToControlFlowPass();
            mlirRegisterConversionConvertVectorToLLVMPass();
            mlirRegisterConversionArithToLLVMConversionPass();
            mlirRegisterConversionConvertControlFlowToLLVMPass();
            mlirRegisterConversionReconcileUnrealizedCastsPass();
            mlirRegisterConversionConvertVectorToSCF();
            mlirRegisterConversionConvertFuncToLLVMPass();
            mlirRegisterConversionConvertMathToLLVMPass();
            mlirRegisterConversionFinalizeMemRefToLLVMConversionPass();
            mlirRegisterConversionUBToLLVMConversionPass();
            mlirRegisterMemRefExpandStridedMetadataPass();
            let registry = mlirDialectRegistryCreate();
            for handle in [
                mlirGetDialectHandle__arith__(),
                mlirGetDialectHandle__cf__(),
                mlirGetDialectHandle__func__(),
                mlirGetDialectHandle__math__(),
                mlirGetDialectHandle__memref__(),
                mlirGetDialectHandle__llvm__(),
                mlirGetDialectHandle__scf__(),
                mlirGetDialectHandle__vector__(),
            ] {
                mlirDialectHandleInsertDialect(handle, registry);
            }
            let raw = mlirContextCreateWithThreading(false);
            mlirContextAppendDialectRegistry(raw, registry);
            mlirDialectRegistryDestroy(registry);
            mlirRegisterAllLLVMTranslations(raw);
            mlirContextLoadAllAvailableDialects(raw);
            let data = &*diagnostics as *const RefCell<Vec<String>> as *mut c_void;
            mlirContextAttachDiagnosticHandler(raw, Some(collect_diagnostic), data, None);
            raw
        };
        Context { raw, diagnostics }
    }

    /// What MLIR has said since the last call.
    fn take_diagnostics(&self) -> String {
        let lines = self.diagnostics.take();
        if lines.is_empty() { "no diagnostic was given".to_string() } else { lines.join("\n") }
    }

    /// Parses and verifies a module.
    ///
    /// # Errors
    /// MLIR's diagnostics, each with line and column of the text.
    pub fn parse(&self, text: &str) -> Result<Module<'_>, String> {
        // SAFETY: the text is copied before the call returns.
        let raw = unsafe { mlirModuleCreateParse(self.raw, string_ref(text)) };
        if raw.ptr.is_null() {
            return Err(self.take_diagnostics());
        }
        Ok(Module { raw, context: self, _owned: PhantomData })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: modules borrow the context, so none is left.
        unsafe { mlirContextDestroy(self.raw) }
    }
}

impl Module<'_> {
    /// Runs a pass pipeline, `builtin.module(…)`.
    ///
    /// # Errors
    /// The pipeline does not parse, or a pass fails: MLIR's diagnostics.
    pub fn run(&mut self, pipeline: &str) -> Result<(), String> {
        let mut message = String::new();
        // SAFETY: the manager is destroyed on every path, and the callback's data outlives the call it is passed to.
        let ok = unsafe {
            let manager = mlirPassManagerCreate(self.context.raw);
            let data = &mut message as *mut String as *mut c_void;
            let top = mlirPassManagerGetAsOpPassManager(manager);
            let parsed = succeeded(mlirParsePassPipeline(top, string_ref(pipeline), Some(append), data));
            let ok = parsed && succeeded(mlirPassManagerRunOnOp(manager, mlirModuleGetOperation(self.raw)));
            mlirPassManagerDestroy(manager);
            ok
        };
        if ok {
            return Ok(());
        }
        if message.is_empty() { Err(self.context.take_diagnostics()) } else { Err(message) }
    }

    /// The module as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // SAFETY: the callback's data outlives the call.
        unsafe {
            mlirOperationPrint(
                mlirModuleGetOperation(self.raw),
                Some(append),
                &mut text as *mut String as *mut c_void,
            );
        }
        text
    }

    /// Translates a module of the `llvm` dialect to LLVM's own IR.
    ///
    /// # Errors
    /// An op that does not translate: MLIR's diagnostics.
    pub fn translate<'l>(
        &self,
        llvm: &'l inkwell::context::Context,
    ) -> Result<inkwell::module::Module<'l>, String> {
        // SAFETY: both crates name the same C types; the new module belongs to `llvm`, whose lifetime it carries, and
        // nothing else owns it.
        unsafe {
            let raw = mlirTranslateModuleToLLVMIR(mlirModuleGetOperation(self.raw), llvm.raw().cast());
            if raw.is_null() {
                return Err(self.context.take_diagnostics());
            }
            Ok(inkwell::module::Module::new(raw.cast()))
        }
    }
}

impl Drop for Module<'_> {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { mlirModuleDestroy(self.raw) }
    }
}

fn succeeded(result: MlirLogicalResult) -> bool {
    result.value != 0
}

fn string_ref(text: &str) -> MlirStringRef {
    MlirStringRef { data: text.as_ptr().cast(), length: text.len() }
}

/// Appends to the `String` that `data` points at.
unsafe extern "C" fn append(text: MlirStringRef, data: *mut c_void) {
    // SAFETY: callers pass a `String`, and MLIR a valid string.
    let (bytes, out) =
        unsafe { (std::slice::from_raw_parts(text.data.cast(), text.length), &mut *data.cast::<String>()) };
    out.push_str(&String::from_utf8_lossy(bytes));
}

/// Keeps `location: message` in the list that `data` points at.
unsafe extern "C" fn collect_diagnostic(diagnostic: MlirDiagnostic, data: *mut c_void) -> MlirLogicalResult {
    let mut text = String::new();
    let out = &mut text as *mut String as *mut c_void;
    // SAFETY: `data` is the context's list, see `Context::new`; `out` outlives the calls.
    let list = unsafe {
        mlirLocationPrint(mlirDiagnosticGetLocation(diagnostic), Some(append), out);
        text.push_str(": ");
        mlirDiagnosticPrint(diagnostic, Some(append), out);
        &*data.cast::<RefCell<Vec<String>>>()
    };
    list.borrow_mut().push(text);
    MlirLogicalResult { value: 1 }
}
