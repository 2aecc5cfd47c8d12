"""Checks every file of deploy/: `python run.py [part of a check's name ...]`. Prints a result for each file of checks, in
the form that `tests/run` adds up."""

import pathlib
import sys
import unittest


class Result(unittest.TextTestResult):
    """Counts what passed. A check that is not there or is skipped has not."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1

    def failed(self):
        return len(self.failures) + len(self.errors) + len(self.skipped) + len(self.unexpectedSuccesses)


def suites(only):
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{part}*" for part in only] or None
    here = pathlib.Path(__file__).parent
    for path in sorted(here.glob("test_*.py")):
        suite = loader.loadTestsFromName(path.stem)
        if suite.countTestCases() or loader.errors:
            yield path.name, suite


def main(only):
    failed = 0
    for name, suite in suites(only):
        print(f"\n     Running tests/deploy/{name}", flush=True)
        runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result)
        result = runner.run(suite)
        word = "FAILED" if result.failed() else "ok"
        print(f"test result: {word}. {result.passed} passed; {result.failed()} failed;", flush=True)
        failed += result.failed()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
