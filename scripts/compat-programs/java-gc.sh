command -v java >/dev/null || exit 127
cat > H.java <<'J'
import java.util.*;
public class H { public static void main(String[] a) throws Exception { long[] r = new long[3]; Thread[] t = new Thread[3]; for (int k = 0; k < 3; k++) { int q = k; t[k] = new Thread(() -> { long s = 0; for (int i = 0; i < 250; i++) { List<String> l = new ArrayList<>(); for (int j = 0; j < 5000; j++) l.add("x" + (i * j + q)); for (String x : l) s = s * 31 + x.hashCode(); } r[q] = s; }); t[k].start(); } for (Thread x : t) x.join(); System.out.println(Arrays.toString(r)); } }
J
javac H.java; for g in ZGC ShenandoahGC ParallelGC; do java -XX:+Use$g -Xmx200m H 2>&1; done
