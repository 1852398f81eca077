command -v mcs >/dev/null || exit 127
cat > a.cs <<'T'
using System; using System.Threading.Tasks; using System.Collections.Generic;
class A { static void Main() { long[] r = new long[4]; Parallel.For(0, 4, k => { long s = 0; for (int i = 0; i < 150; i++) { var l = new List<string>(); for (int j = 0; j < 5000; j++) l.Add("x" + (i * j + k)); foreach (var x in l) foreach (char c in x) s = s * 31 + c; } r[k] = s; }); Console.WriteLine(string.Join(",", r)); } }
T
mcs a.cs && mono a.exe
