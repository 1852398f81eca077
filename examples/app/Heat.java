import java.nio.DoubleBuffer;
import java.nio.LongBuffer;
import org.gridcpr.Checkpoint;

/**
 * Heat in a rod. Writes its state every thousand steps, and goes on from the newest one when it is started again.
 *
 * <p>java -cp gridcpr.jar Heat.java /scratch 20000
 */
public final class Heat {
    private static final int N = 1000;

    public static void main(String[] arguments) {
        long last = Long.parseLong(arguments[1]);
        DoubleBuffer rod = Checkpoint.doubles(N);
        LongBuffer step = Checkpoint.longs(1);
        double[] next = new double[N];
        rod.put(0, 100);
        try (Checkpoint state = new Checkpoint(arguments[0], "heat-java", new Checkpoint.Options().keep(2))) {
            state.protect("temperature", rod);
            state.protect("step", step);
            if (state.restore() > 0) {
                System.err.println("heat: going on at step " + step.get(0));
            }
            while (step.get(0) < last) {
                for (int i = 1; i < N - 1; i++) {
                    next[i] = rod.get(i) + 0.3 * (rod.get(i - 1) - 2 * rod.get(i) + rod.get(i + 1));
                }
                rod.put(1, next, 1, N - 2);
                step.put(0, step.get(0) + 1);
                if (step.get(0) % 1000 == 0) {
                    state.write();
                }
            }
        }
        double sum = 0;
        for (int i = 0; i < N; i++) {
            sum += rod.get(i) * i;
        }
        System.out.println(step.get(0) + " steps, " + sum);
    }
}
