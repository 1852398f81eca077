"""What the Python package does; run with `python3 -m unittest` where libgridcpr can be found (GRIDCPR_LIBRARY)."""

import os
import pathlib
import tempfile
import unittest
from array import array

import gridcpr

try:
    import numpy
except ImportError:
    numpy = None


class Generations(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.base = pathlib.Path(self.directory.name)
        self.addCleanup(self.directory.cleanup)

    def part(self, generation: int) -> pathlib.Path:
        return self.base / "run" / f"{generation:06}" / "part-00000"

    # GFD93-LIB-7
    def test_arrays_come_back(self) -> None:
        numbers, text = array("d", [1.5, 2.5, -3.0]), bytearray(b"abc")
        with gridcpr.Checkpoint("run", self.base) as checkpoint:
            checkpoint.protect("numbers", numbers)
            checkpoint.protect("text", text)
            self.assertEqual(checkpoint.restore(), 0)
            self.assertEqual(checkpoint.write(), 1)
            numbers[0], text[:] = 9.0, b"xyz"
            self.assertEqual(checkpoint.write(), 2)
            numbers[0], text[:] = 0.0, b"..."
            self.assertEqual(checkpoint.restore(), 2)
            self.assertEqual((list(numbers), bytes(text)), ([9.0, 2.5, -3.0], b"xyz"))
            self.assertEqual(checkpoint.restore(1), 1)
            self.assertEqual((list(numbers), bytes(text)), ([1.5, 2.5, -3.0], b"abc"))

    def test_an_altered_generation_is_passed_over(self) -> None:
        numbers = array("q", range(1000))
        with gridcpr.Checkpoint("run", self.base) as checkpoint:
            checkpoint.protect("numbers", numbers)
            checkpoint.write()
            numbers[5] = 77
            checkpoint.write()
            damaged = bytearray(self.part(2).read_bytes())
            damaged[5000] ^= 1
            self.part(2).write_bytes(damaged)
            with self.assertRaises(gridcpr.Error) as caught:
                checkpoint.validate(2)
            self.assertEqual(caught.exception.code, -65)
            self.assertIn("altered", str(caught.exception))
            self.assertEqual(checkpoint.restore(), 1)
            self.assertEqual(numbers[5], 5)

    def test_writing_goes_on_behind_the_program(self) -> None:
        data = bytearray(os.urandom(5 << 20))
        before = bytes(data)
        with gridcpr.Checkpoint("run", self.base) as checkpoint:
            checkpoint.protect("data", data)
            checkpoint.write_begin()
            data[:] = bytes(len(data))
            self.assertEqual(checkpoint.wait(), 1)
            self.assertEqual(checkpoint.progress(), (False, len(data), len(data)))
            checkpoint.restore()
        self.assertEqual(bytes(data), before)

    def test_generations_are_described_kept_and_freed(self) -> None:
        number = array("i", [1])
        with gridcpr.Checkpoint("run", self.base, keep=2) as checkpoint:
            checkpoint.set_attribute("code", "test 1")
            checkpoint.protect("number", number)
            for _ in range(4):
                checkpoint.write()
            self.assertEqual([g.number for g in checkpoint.generations()], [3, 4])
            self.assertEqual(checkpoint.generations()[0].state, "complete")
            checkpoint.update(3, "step", "400", lifetime=60)
            self.assertEqual(checkpoint.attribute(3, "step"), "400")
            self.assertEqual(checkpoint.attribute(4, "code"), "test 1")
            self.assertEqual(checkpoint.generations()[0].lifetime, 60)
            checkpoint.transfer(4, self.base / "elsewhere")
            checkpoint.free(3)
            self.assertEqual([g.number for g in checkpoint.generations()], [4])
        with gridcpr.Checkpoint("run", self.base / "elsewhere") as there:
            there.protect("number", number)
            self.assertEqual(there.restore(), 4)

    def test_wrong_use_is_an_error(self) -> None:
        with self.assertRaises(gridcpr.Error):
            gridcpr.Checkpoint("a/b", self.base)
        with self.assertRaises(gridcpr.Error):
            gridcpr.Checkpoint("run", self.base, sequence="xF")
        checkpoint = gridcpr.Checkpoint("run", self.base)
        with self.assertRaises(TypeError):
            checkpoint.protect("text", b"cannot be written to")
        with self.assertRaises(gridcpr.Error):
            checkpoint.unprotect("nothing")
        with self.assertRaises(gridcpr.Error) as busy:
            gridcpr.Checkpoint("run", self.base)
        self.assertEqual(busy.exception.code, -75)
        checkpoint.protect("number", array("i", [1]))
        checkpoint.write()
        checkpoint.protect("number", array("i", [1, 2]))
        with self.assertRaises(gridcpr.Error) as other:
            checkpoint.restore()
        self.assertEqual(other.exception.code, -78)
        checkpoint.close()
        checkpoint.close()
        with self.assertRaises(ValueError):
            checkpoint.write()

    def test_the_environment_says_what_the_program_leaves_open(self) -> None:
        said = {
            "GRIDCPR_APP_BASE": str(self.base),
            "GRIDCPR_APP_KEEP": "2",
            "GRIDCPR_APP_SEQUENCE": "FI",
            "SAGA_CPR_TIME_TO_LIVE": "1000000",
            "SAGA_CPR_BASE_LOCATION": "/nowhere",
        }
        os.environ.update(said)
        try:
            with gridcpr.Checkpoint("run") as checkpoint:
                checkpoint.protect("data", bytearray(b"unchanged"))
                for _ in range(3):
                    checkpoint.write()
                # The second refers to the first, so the third leaves both of them.
                self.assertEqual([g.needs for g in checkpoint.generations()], [0, 1, 0])
            os.environ["GRIDCPR_APP_KEEP"] = "few"
            with self.assertRaises(gridcpr.Error) as wrong:
                gridcpr.Checkpoint("run")
            self.assertIn("GRIDCPR_APP_KEEP", str(wrong.exception))
        finally:
            for name in said:
                del os.environ[name]

    def test_sections_nest(self) -> None:
        with gridcpr.critical(), gridcpr.critical():
            pass
        self.assertEqual(gridcpr.restarted(), 0)
        self.assertRegex(gridcpr.version(), r"^\d+\.\d+")

    @unittest.skipIf(numpy is None, "there is no numpy")
    def test_arrays_of_numpy(self) -> None:
        whole = numpy.arange(48, dtype="float32").reshape(6, 8)
        variables = {
            "c": numpy.arange(12, dtype="int16").reshape(3, 4),
            "fortran": numpy.asfortranarray(numpy.arange(12, dtype="complex128").reshape(3, 4)),
            "strided": whole[1::2, 2:7:3],
            "scalar": numpy.array(7, dtype="uint64"),
            "empty": numpy.zeros((0, 3)),
            "truth": numpy.array([True, False]),
        }
        saved = {name: variable.copy() for name, variable in variables.items()}
        untouched = whole.copy()
        with gridcpr.Checkpoint("run", self.base) as checkpoint:
            for name, variable in variables.items():
                checkpoint.protect(name, variable)
            checkpoint.write()
            for variable in variables.values():
                variable[...] = 0
            checkpoint.restore()
            with self.assertRaises(TypeError):
                checkpoint.protect("foreign", numpy.zeros(3, dtype=">i4"))
            with self.assertRaises(TypeError):
                checkpoint.protect("backwards", whole[::-1, ::2])
        for name, variable in variables.items():
            numpy.testing.assert_array_equal(variable, saved[name])
        numpy.testing.assert_array_equal(whole, untouched)


if __name__ == "__main__":
    unittest.main()
