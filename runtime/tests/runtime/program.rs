//! A binary put together wrongly says so and does not start.

use mlc_runtime::abi::{ABI_VERSION, Place, ProgramInfo, ProgramTable};
use mlc_runtime::program::Program;

use crate::fixture::{info, with_table};

fn refusal(change: impl FnOnce(&mut ProgramInfo)) -> String {
    let mut info = info();
    change(&mut info);
    // SAFETY: the table's pointers and lengths are right; what they describe may be wrong, which is the point.
    let program = with_table(&info, |table| unsafe { Program::from_table(table) });
    program.err().expect("the program is refused").message
}

#[test]
fn buffers_outside_their_space_are_refused() {
    type Change<'a> = &'a dyn Fn(&mut ProgramInfo);
    let cases: [(&str, Change); 6] = [
        ("tensor `bias`", &|i| i.tensors[2].place.offset = i.spaces[0].bytes - 4),
        ("tensor `bias`", &|i| i.tensors[2].place.offset = u64::MAX - 3),
        ("tensor `layer.{i}.w`", &|i| i.tensors[0].shape = vec![u64::MAX, 2]),
        ("scalar `step`", &|i| i.scalars[0].place = Place { space: 1, offset: 0 }),
        ("input `targets` of `train`", &|i| i.entries[0].inputs[1].place.offset += 2),
        ("output `loss` of `eval`", &|i| i.entries[1].outputs[0].place.offset = u64::MAX),
    ];
    for (what, change) in cases {
        let message = refusal(change);
        let expected = format!("error: this binary is damaged: {what} lies outside memory or is not aligned");
        assert!(message.starts_with(&expected), "{message}");
    }
}

#[test]
fn tables_of_another_interface_are_refused() {
    with_table(&info(), |table| {
        let read = |change: &dyn Fn(&mut ProgramTable)| {
            let mut table = ProgramTable { ..*table };
            change(&mut table);
            // SAFETY: only numbers were changed, and lengths only downwards.
            unsafe { Program::from_table(&table) }.err().map(|failure| failure.message).unwrap_or_default()
        };
        let version = read(&|t| t.abi_version = ABI_VERSION + 1);
        assert!(version.contains(&format!("speaks version {} of the runtime's interface", ABI_VERSION + 1)));
        assert!(read(&|t| t.n_entries = 2).contains("it has 2 step functions and describes 3"));
        assert!(read(&|t| t.info_len -= 1).contains("description does not parse"));
        assert_eq!(read(&|_| ()), "");
    });
    // SAFETY: a null table is allowed.
    let none = unsafe { Program::from_table(std::ptr::null()) };
    assert!(none.err().unwrap().message.contains("there is no program table"));
}

#[test]
fn logical_tensors_are_slices_in_order() {
    let program = crate::fixture::program_with(&info());
    let tensors = program.logical_tensors();
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["layer.0.w", "layer.1.w", "layer.0.w.m", "layer.1.w.m", "bias", "bias.m"]);
    assert_eq!(tensors[1].place.offset - tensors[0].place.offset, 256 * 256 * 4);
    assert_eq!(program.parameters(), 2 * 256 * 256 + 256);
}
