//! The stable codes of everything the front end can report. A code is never reused for another meaning.

/// A code with the paragraph that `mlc explain` prints.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// `E0301`, or `N0001` for a note.
    pub id: &'static str,
    /// What it means and what to do about it.
    pub explain: &'static str,
}

impl PartialEq for Code {
    fn eq(&self, other: &Code) -> bool {
        self.id == other.id
    }
}

macro_rules! codes {
    ($($name:ident = $id:literal, $explain:literal;)*) => {
        $(#[doc = $explain] pub const $name: Code = Code { id: $id, explain: $explain };)*
        /// Every code, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    NOT_APPLIED = "N0001", "The construct is part of the language and was checked, but this version of the compiler gives it no effect yet. The build goes on without it.";
    PLACEHOLDER = "N0002", "The model was checked alone, so the sizes that the run gives (`= run`) stand at placeholder values. Check a run file to see the real ones.";
    NOT_RECOGNISED = "N0003", "A formula is close to one the kernel library knows whole (attention, a norm, the loss head), but differs in one point, so it runs as separate kernels. The numbers are the same; the note says what differs.";
    UPDATES_WAIT = "N0004", "The optimizer's update of a repeated layer could run inside the backward loop, where the layer's gradient would be used up at once and the gradients of all layers together would need no memory. Here it can't: `clip` and `skip` need the norm over every gradient before the first update, and accumulation adds gradients over microbatches. The numbers are the same either way.";
    AUTO_MESH = "N0005", "The size of an `auto` mesh axis follows from the number of devices. Without `--devices` it has its least size, 1 unless a range says more. Give `--devices` to check, plan or build for the real number.";
    PADDED = "N0006", "The size of an axis of parameters is not a multiple of the number of devices it is split over, so the axis is made longer on the devices. What lies beyond its real size is zero and never reaches a real element. Choose a size that divides to save the work on it.";
    KERNEL_WHOLE = "N0007", "A kernel of your own is written for tensors of the sizes of the spec, so over a mesh none of its axes is split: every device gathers what the kernel takes and computes all of it. The numbers are the same. Where the work is to be divided, leave the block to the compiler.";
    SYNTAX = "E0101", "The text is not in the form of the spec language. The message names what may stand at the marked place. Remember that a line can only be broken after an opening bracket, a comma, an operator or `=`.";
    VERSION = "E0102", "Every file starts with the line `spec 1`, which fixes the meaning of everything below it. Other versions are not known to this compiler.";
    NESTING = "E0103", "Brackets, operators or blocks are nested deeper than the compiler allows. The limit protects against runaway generated text; name intermediate results to stay below it.";
    TOO_LARGE = "E0104", "The file, or what its blocks expand to, is larger than the named limit.";
    NUMBER = "E0105", "The number can't be represented, has a suffix that does not fit here, or is outside what the key allows.";
    CANNOT_READ = "E0106", "A file named by `use` can't be read. The path is relative to the file that names it.";
    USE_CYCLE = "E0107", "A file uses itself, directly or through others.";
    PLACE = "E0108", "The statement is legal, but not at this place: a `loss` belongs in the model, not in a block; a `size` in the model; a block ends with its value.";
    UNKNOWN_NAME = "E0201", "Nothing of this name is defined here. Names must be defined above their first use; blocks may stand anywhere in the model.";
    DUPLICATE = "E0202", "The name is already taken in this scope. Two instances of one block need different `@names` because parameters are addressed by path.";
    UNUSED_SIZE = "E0203", "A size nobody uses is nearly always a typo or a leftover, and `with` or `--set` would change it without any effect.";
    RECURSION = "E0204", "A block contains itself. The language has no recursion; use `repeat`.";
    ARGUMENTS = "E0205", "The call does not fit the block or function: too many or too few arguments, an argument it does not know, or a tensor where a constant is needed.";
    KIND = "E0206", "The name exists but is something else: a block used as a value, a value called as a block, an axis used as a tensor.";
    NOT_AVAILABLE = "E0207", "The construct is part of the language but has no implementation in this version. A binary without it would train something else than the spec says, so nothing is built. Take it out, or check the model without a run.";
    AXIS_NOT_IN_OPERAND = "E0301", "The operation runs over an axis that its operand does not have.";
    SIZE_MISMATCH = "E0302", "Two tensors have an axis of one name but of different sizes.";
    CONTRACTION_MISSING = "E0303", "`dot` sums over the axes in its brackets; both operands must have each of them.";
    OUTPUT_AXIS = "E0304", "The value has an axis that the declared result does not. Remove it with `sum[axis]`, `mean[axis]` or a `dot`, or add it to the declaration.";
    UNION = "E0305", "Neither operand has all axes of the other, so the result would silently grow to the union. If that is meant, say so by annotating the result: `name[axes] = …`.";
    OUTPUT_LACKS = "E0306", "The declared result has an axis that the value does not have.";
    DTYPE = "E0307", "The operation does not work on this type of element: conditions are bool, indices are integers, arithmetic is on numbers.";
    SIZE_VALUE = "E0308", "A size is a whole number from 1 to 2^48, and divisions of sizes must be exact.";
    NUMEL = "E0309", "The tensor has more elements than a 64-bit count can address safely (2^62).";
    CARRY = "E0310", "What a repeated block returns is passed to its next iteration, so it must have exactly the axes of its first argument.";
    AXIS_TWICE = "E0311", "An axis name may appear only once in one tensor.";
    LOSS = "E0312", "A model has exactly one `loss`, of the form `loss mean[axes](per-token value)` or `loss weighted_mean[axes](value, weight)`; with a `mean` the value has exactly those axes.";
    CYCLE_LENGTH = "E0313", "The list of per-iteration constants must divide the number of iterations.";
    UNKNOWN_KEY = "E0401", "The section has no such key.";
    VALUE_TYPE = "E0402", "The key takes another kind of value.";
    MISSING_KEY = "E0403", "The section needs this key and has no default for it.";
    RANGE = "E0404", "The value is outside the range the key allows.";
    BATCH_DIVIDE = "E0405", "`batch` must be a whole multiple of `microbatch` times the number of data shards, because every accumulation step has the same shape. The data shards are the devices `batch` is split over.";
    GLOB_NOTHING = "E0406", "A glob that hits nothing is a typo or a leftover. `*` stands for any characters within one segment of a path, `**` for any number of segments.";
    PART_OF_REPEAT = "E0407", "The rule names single iterations of a repeat, but all iterations share one compiled body. Repeat a block of two, or cycle a constant.";
    UNTOUCHED = "E0408", "With a mesh, every parameter should be named by some rule, even if only by `-> none`.";
    INDIVISIBLE = "E0409", "The size of the axis is not a multiple of the number of devices it is split over. Axes of parameters are padded where that adds at most an eighth; others must split evenly.";
    MESH_PRODUCT = "E0410", "The product of the mesh axes differs from the number of devices given by `--devices`. Axes may be `auto`: they take what the others leave, the last of them as much as its range allows.";
    MESH_AXIS_TWICE = "E0411", "A mesh axis can split only one axis of a tensor: each device would otherwise hold a diagonal of it. Rules that name axes hold for every tensor that has them; exempt a value or a parameter with a later rule `-> none`.";
    NAMES_INCOMPLETE = "E0412", "A name table must name every parameter of the model exactly once, so that import and export lose nothing.";
    NAMES_RULE = "E0413", "The rule of a name table does not fit the parameters it names.";
    MODEL_CHOICE = "E0414", "A run trains exactly one model; the file has none, or several of which `train { model = … }` chooses none.";
    VOCABULARY = "E0415", "The data can hold ids that the model's vocabulary does not have.";
    OVERRIDE = "E0416", "An override must read `section.key=value` or `Model.size=value`, with names that exist.";
    CUSTOM_KERNEL = "E0417", "The file of a kernel of your own does not fit the block it stands for: a function or argument is missing, is of another type, or computes something else. Arguments are bound by name; the message gives the types both sides have.";
    REPLICATES = "E0418", "A value would be gathered whole on its way from one split over devices to another, because no sequence of exchanges of parts leads there. That is nearly always a mistake in the rules: the same axis split over mesh axes in another order, or parts of sizes that do not fit into each other. Split it alike on both sides, or allow it by the value's path: `allow_replicate` in `shard`.";
    STRICT = "E0419", "With `mode = strict` in `shard`, every value of the forward pass that is sent between devices has to be sent because a rule says so. Here an op needs a value that lies differently, and which value moves would be a question of price. The message lists the choices; a `values` or `role` rule makes one of them.";
}
